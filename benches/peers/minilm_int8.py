"""Scores of quantized files of all-MiniLM-L6-v2 in ONNX Runtime, beside its own quantization.

Usage: minilm_int8.py MODEL_FOLDER QUANTIZED_FOLDER
MODEL_FOLDER has what minilm.py writes, QUANTIZED_FOLDER what `--out` of the example
`quantize_minilm` has written. Each file runs on the evaluation sentences, in batches of 32 as
padded, and one sentence at a time without padding; embeddings are compared with the float model's
of the same batches. Microseconds are those of the median sentence, alone, on two threads.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


def sentences(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in ("input_ids", "attention_mask")}


class Examples(CalibrationDataReader):
    """Calibration sentences, one at a time without padding, so that none of it gets into ranges."""

    def __init__(self, data):
        self.rows = iter(alone(data))

    def get_next(self):
        return next(self.rows, None)


def alone(data):
    lengths = data["attention_mask"].sum(axis=1)
    for i, length in enumerate(lengths):
        yield {name: array[i : i + 1, :length] for name, array in data.items()}


def embeddings(path, data):
    """Those of padded batches, those of single sentences, and the median time of the latter."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count = len(data["input_ids"])
    batches = [
        session.run(None, {name: array[i : i + 32] for name, array in data.items()})[0]
        for i in range(0, count, 32)
    ]
    single, times = [], []
    for row in alone(data):
        start = time.perf_counter()
        single.append(session.run(None, row)[0])
        times.append(time.perf_counter() - start)
    return np.concatenate(batches), np.concatenate(single), 1e6 * float(np.median(times))


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def neighbours(rows):
    likeness = unit(rows) @ unit(rows).T
    np.fill_diagonal(likeness, -2.0)
    return likeness.argmax(axis=1)


def scores(exact, found):
    cosines = (unit(exact) * unit(found)).sum(axis=1)
    kept = (neighbours(exact) == neighbours(found)).mean()
    error = ((exact.astype(np.float64) - found) ** 2).mean()
    return f"{cosines.mean():.5f} | {cosines.min():.5f} | {100 * kept:.1f} % | {error:.3e}"


def main():
    model_folder, quantized = map(pathlib.Path, sys.argv[1:3])
    model = model_folder / "model.onnx"
    evaluation = sentences(model_folder / "evaluation.npz")
    calibration = sentences(model_folder / "calibration.npz")
    exact = embeddings(model, evaluation)
    print(f"ONNX Runtime {ort.__version__}")
    print("| file | sentences | mean cosine | lowest | neighbour kept | mean square error | bytes | µs |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")

    def row(name, path):
        found = embeddings(path, evaluation)
        size = path.stat().st_size
        for i, kind in enumerate(("padded", "alone")):
            times = f"{found[2]:.0f}" if kind == "alone" else ""
            print(f"| {name} | {kind} | {scores(exact[i], found[i])} | {size} | {times} |", flush=True)

    row("float", model)
    files = sorted(quantized.glob("*.onnx"))
    if not files:
        sys.exit(f"{quantized} has no .onnx files")
    for path in files:
        row(path.stem, path)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        dynamic, static = folder / "dynamic.onnx", folder / "static.onnx"
        quantize_dynamic(str(model), str(dynamic), per_channel=True, weight_type=QuantType.QInt8)
        row("ONNX Runtime's quantize_dynamic", dynamic)
        quantize_static(
            str(prepared),
            str(static),
            Examples(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        row("ONNX Runtime's quantize_static", static)


if __name__ == "__main__":
    main()
