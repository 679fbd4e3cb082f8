"""What the Python workers of `cargo xtask bench` share: the lines that benches/src/protocol.rs
describes, and its files."""

import gc
import json
import os
import struct
import sys

import numpy as np

DTYPES = {"F32": np.float32, "I64": np.int64, "I8": np.int8, "U8": np.uint8}


def read_tensors(path):
    """The arrays of a safetensors file by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            count = (end - start) // dtype.itemsize
            flat = np.frombuffer(data, dtype=dtype, count=count, offset=start)
            arrays[name] = flat.reshape(entry["shape"]).copy()
    return arrays


def serve(version, settings, load):
    """Answers requests until standard input ends.

    `load(request)` gives an object with `parameters`, `run(steps, lr)`, which gives microseconds
    and a loss or None, and `outputs()`, a list of arrays.
    """
    # What libraries print goes to standard error: replies have standard output to themselves.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            action = request["do"]
            if action == "about":
                reply = {"version": version, "settings": settings}
            elif action == "load":
                # The memory of the one before is needed.
                work = None
                gc.collect()
                work = load(request)
                reply = {"parameters": work.parameters}
            elif work is None:
                raise ValueError("nothing is loaded")
            elif action == "run":
                if request["steps"] < 1:
                    raise ValueError("a run has one step at least")
                us, loss = work.run(request["steps"], request["lr"])
                reply = {"us": us, "loss": loss}
            elif action == "outputs":
                flat = [np.asarray(x).astype("<f4").ravel() for x in work.outputs()]
                flat = np.concatenate(flat)
                flat.tofile(request["file"])
                reply = {"written": flat.size}
            else:
                raise ValueError(f"no request {action}")
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
