"""The worker of `cargo xtask bench` that runs PyTorch, as one would write it.

Reads and writes the lines that benches/src/protocol.rs describes. `load` has one key more:
`variant` is `torch` (optimizers with their default flags), `torch-fused` (`fused=True`) or
`torch-compile` (that, and the model with its loss by `torch.compile`, with its defaults).
"""

import contextlib
import time

import torch
import torch.nn.functional as F

import torch_models
import worker

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
FLAGS = {"torch": {}, "torch-fused": {"fused": True}, "torch-compile": {"fused": True}}
SETTINGS = "torch-fused and torch-compile: fused optimizers; torch-compile: inductor, defaults"


def load_weights(model, tensors):
    """Loads entries `model.NAME`; every entry of the module but batch counters has to be there."""
    state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith(".num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")


class Work:
    def __init__(self, request):
        torch.set_num_threads(request["threads"])
        row = request["row"]
        self.device = torch.device(request["device"])
        self.precision = row["precision"]
        self.training = row["mode"] == "train"
        tensors = worker.read_tensors(request["weights"])
        tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
        # The batch waits where a data loader would leave it.
        self.input, self.target = tensors["input"], tensors["target"]
        if self.device.type == "cuda":
            self.input, self.target = self.input.pin_memory(), self.target.pin_memory()
        self.model = torch_models.build(row["model"])
        load_weights(self.model, tensors)
        self.model.to(self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        if self.training:
            self.model.train()
            flags = FLAGS[request["variant"]]
            optimizer = OPTIMIZERS[row["optimizer"]]
            self.optimizer = optimizer(self.model.parameters(), **flags)
        else:
            self.model.eval()
        self.compute = self.loss_of if self.training else self.model
        if request["variant"] == "torch-compile":
            torch._dynamo.reset()
            self.compute = torch.compile(self.compute)
            try:
                self.first()
            except Exception as error:
                first = str(error).strip().splitlines()[:1]
                raise RuntimeError(
                    "torch.compile failed (it needs a C++ compiler: g++, or the one that CXX "
                    f"names): {type(error).__name__}: {''.join(first)}"
                ) from error

    def first(self):
        """Compiles forward and backward, and leaves the model as it was."""
        x, y = self.batch()
        if not self.training:
            self.forward()
            return
        # Statistics of batch norms move in a forward pass.
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        with self.autocast():
            loss = self.compute(x, y)
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    def loss_of(self, x, y):
        return F.cross_entropy(self.model(x), y)

    def autocast(self):
        if self.precision == "f32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def batch(self):
        return (
            self.input.to(self.device, non_blocking=True),
            self.target.to(self.device, non_blocking=True),
        )

    def train(self):
        x, y = self.batch()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.compute(x, y)
        loss.backward()
        self.optimizer.step()
        return loss

    def forward(self):
        x, _ = self.batch()
        with torch.inference_mode(), self.autocast():
            return self.compute(x)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, steps, lr):
        """The microseconds of all steps, and the loss of the last."""
        step = self.train if self.training else self.forward
        if self.training:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            last = step()
        if self.training:
            loss = last.item()
        self.synchronize()
        us = (time.perf_counter() - start) * 1e6
        if not self.training:
            loss = F.cross_entropy(last.float().cpu(), self.target).item()
        return us, loss

    def outputs(self):
        if self.training:
            raise ValueError("a step that trains has a loss to compare")
        return [self.forward().float().cpu().numpy()]


if __name__ == "__main__":
    worker.serve(torch.__version__, SETTINGS, Work)
