"""The worker of `cargo xtask bench` that runs eager PyTorch, as one would write it.

Reads and writes the lines that benches/src/protocol.rs describes. `load` has one key more:
`variant` is `torch` (optimizers with their default flags) or `torch-fused` (`fused=True`).
"""

import contextlib
import json
import os
import struct
import sys
import time

import torch
import torch.nn.functional as F

import torch_models

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
VARIANTS = {"torch": {}, "torch-fused": {"fused": True}}
DTYPES = {"F32": torch.float32, "I64": torch.int64}


def read_tensors(path):
    """The tensors of a safetensors file by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = DTYPES[entry["dtype"]]
            count = (end - start) // dtype.itemsize
            flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start)
            tensors[name] = flat.reshape(entry["shape"]).clone()
    return tensors


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
        tensors = read_tensors(request["weights"])
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
            flags = VARIANTS[request["variant"]]
            optimizer = OPTIMIZERS[row["optimizer"]]
            self.optimizer = optimizer(self.model.parameters(), **flags)
        else:
            self.model.eval()

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
            loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def forward(self):
        x, _ = self.batch()
        with torch.inference_mode(), self.autocast():
            return self.model(x)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, steps, lr):
        """The microseconds of all steps, and the loss of the last."""
        if steps < 1:
            raise ValueError("a run has one step at least")
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


def main():
    # What libraries print goes to standard error: replies have standard output to themselves.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if request["do"] == "load":
                # The memory of the one before is needed.
                work = None
                work = Work(request)
                reply = {"parameters": work.parameters}
            elif request["do"] == "run":
                if work is None:
                    raise ValueError("nothing is loaded")
                us, loss = work.run(request["steps"], request["lr"])
                reply = {"us": us, "loss": loss}
            else:
                raise ValueError(f"no request {request['do']}")
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
