"""ONNX Runtime's side of the benchmark `int8`: the same layers, the best time of many runs.

Usage: int8_onnxruntime.py [FILTER]. Prints operations a second of QLinearMatMul and QLinearConv
(bytes in, bytes out, as this library's layers) and of MatMulInteger (32-bit sums out, without
requantization), on one thread and on two.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SECONDS = 0.3

PRODUCTS = [
    ("matmul 1024x1024x1024", 1024, 1024, 1024),
    ("matmul 2048x2048x2048", 2048, 2048, 2048),
    ("matmul 1x4096x4096", 1, 4096, 4096),
    ("matmul 128x768x3072", 128, 3072, 768),
    ("matmul 128x3072x768", 128, 768, 3072),
]
# Inputs, outputs, size, kernel, stride.
CONVOLUTIONS = [
    ("conv 3x3 64->64 56x56", 64, 64, 56, 3, 1),
    ("conv 3x3 256->256 14x14", 256, 256, 14, 3, 1),
    ("conv 7x7/2 3->64 224x224", 3, 64, 224, 7, 2),
]


def grid(outputs):
    return {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(128, np.uint8),
        "ws": (0.01 + np.arange(outputs) * 1e-6).astype(np.float32),
        "wz": np.zeros(outputs, np.int8),
        "ys": np.array(1, np.float32),
        "yz": np.array(120, np.uint8),
    }


def model(node, x, y_type, rank, constants):
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)]
    outputs = [helper.make_tensor_value_info("y", y_type, [None] * rank)]
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph([node], "layer", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def measure(name, label, content, x, operations):
    for threads in (1, 2):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        best, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            began = time.perf_counter()
            session.run_with_iobinding(binding)
            best = min(best, time.perf_counter() - began)
        print(
            f"  {name}, {label}, {threads} threads: {best * 1e3:9.3f} ms "
            f"{operations / best / 1e9:7.0f} GOP/s",
            flush=True,
        )


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    random = np.random.default_rng(0)
    print(f"ONNX Runtime {ort.__version__}")
    linear = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    for name, m, n, k in PRODUCTS:
        if wanted not in name:
            continue
        x = random.integers(0, 256, (m, k), dtype=np.uint8)
        w = random.integers(-128, 128, (k, n), dtype=np.int8)
        node = helper.make_node("MatMulInteger", ["x", "w", "xz"], ["y"])
        constants = {"w": w, "xz": np.array(128, np.uint8)}
        content = model(node, x, TensorProto.INT32, 2, constants)
        measure(name, "MatMulInteger", content, x, 2 * m * n * k)
        node = helper.make_node("QLinearMatMul", linear, ["y"])
        content = model(node, x, TensorProto.UINT8, 2, {"w": w} | grid(n))
        measure(name, "QLinearMatMul", content, x, 2 * m * n * k)
    for name, inputs, outputs, size, kernel, stride in CONVOLUTIONS:
        if wanted not in name:
            continue
        x = random.integers(0, 256, (1, inputs, size, size), dtype=np.uint8)
        w = random.integers(-128, 128, (outputs, inputs, kernel, kernel), dtype=np.int8)
        pad = kernel // 2
        node = helper.make_node(
            "QLinearConv", linear, ["y"], pads=[pad] * 4, strides=[stride] * 2
        )
        pixels = -(-size // stride)
        operations = 2 * inputs * outputs * pixels**2 * kernel**2
        content = model(node, x, TensorProto.UINT8, 4, {"w": w} | grid(outputs))
        measure(name, "QLinearConv", content, x, operations)


if __name__ == "__main__":
    main()
