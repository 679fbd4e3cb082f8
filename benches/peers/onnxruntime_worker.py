"""The worker of `cargo xtask bench` that runs ONNX Runtime: all optimizations, inputs and outputs
bound once, so that a run copies nothing that it need not."""

import time

import onnxruntime as ort

import worker

SETTINGS = "ORT_ENABLE_ALL, inputs and outputs bound"


class Work:
    parameters = 0

    def __init__(self, request):
        if request.get("onnx") is None:
            raise ValueError("ONNX Runtime runs models that are files")
        options = ort.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = ort.InferenceSession(
            request["onnx"], options, providers=["CPUExecutionProvider"]
        )
        # The binding does not own what it is bound to.
        self.inputs = worker.read_tensors(request["weights"])
        self.binding = self.session.io_binding()
        for name, array in self.inputs.items():
            self.binding.bind_cpu_input(name, array)
        names = [output.name for output in self.session.get_outputs()]
        for name in names:
            self.binding.bind_output(name)
        self.session.run_with_iobinding(self.binding)
        # Sizes are known now: runs write to the same memory.
        self.held = self.binding.get_outputs()
        for name, value in zip(names, self.held):
            self.binding.bind_ortvalue_output(name, value)

    def run(self, steps, lr):
        session, binding = self.session, self.binding
        start = time.perf_counter()
        for _ in range(steps):
            session.run_with_iobinding(binding)
        return (time.perf_counter() - start) * 1e6, None

    def outputs(self):
        self.session.run_with_iobinding(self.binding)
        return self.binding.copy_outputs_to_cpu()


if __name__ == "__main__":
    worker.serve(ort.__version__, SETTINGS, Work)
