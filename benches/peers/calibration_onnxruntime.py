"""The worker of `cargo xtask bench-calibration` that runs ONNX Runtime's calibrators, as
`onnxruntime.quantization.quantize_static` does; benches/src/calibration.rs describes the lines."""

import json
import os
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def examples(start, stop, width):
    """Examples by their numbers: uniform from -1 to 1, by a hash of each entry's place."""
    h = np.arange(start * width, stop * width, dtype=np.uint64).astype(np.uint32)
    h = h * np.uint32(2654435761)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    values = (h >> np.uint32(8)).astype(np.float32) / np.float32(8388608) - np.float32(1)
    return values.reshape(stop - start, width)


class Reader(CalibrationDataReader):
    """Batches that are made when they are asked for."""

    def __init__(self, name, request):
        self.name, self.at = name, 0
        self.samples, self.batch = request["samples"], request["batch"]
        self.width = request["width"]

    def get_next(self):
        if self.at >= self.samples:
            return None
        stop = min(self.at + self.batch, self.samples)
        batch = examples(self.at, stop, self.width)
        self.at = stop
        return {self.name: batch}


def calibrate(request):
    start = time.perf_counter()
    # Only what the products read, which is what the other side observes, and their outputs.
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            request["model"],
            ["Gemm", "MatMul"],
            augmented_model_path=os.path.join(folder, "augmented.onnx"),
            calibrate_method=METHODS[request["method"]],
        )
        name = calibrator.infer_session.get_inputs()[0].name
        calibrator.collect_data(Reader(name, request))
        found = calibrator.compute_data()
    ranges = {}
    for key in found.keys():
        low, high = found[key].range_value
        ranges[key] = [float(np.ravel(low)[0]), float(np.ravel(high)[0])]
    return {"seconds": time.perf_counter() - start, "ranges": ranges}


def main():
    # What libraries print goes to standard error: replies have standard output to themselves.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if request["do"] == "about":
                reply = {"version": ort.__version__, "settings": ""}
            elif request["do"] == "calibrate":
                reply = calibrate(request)
            else:
                raise ValueError(f"no request {request['do']}")
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
