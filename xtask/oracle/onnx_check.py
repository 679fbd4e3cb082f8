"""Whether ONNX files are valid, and ONNX Runtime computes with them what is expected.

Usage: onnx_check.py MANIFEST.json
The manifest is a list of {"model", "inputs", "outputs", "atol"?, "rtol"?, "steps"?,
"max_quant_steps"?, "runtime"?}. `inputs` and `outputs` are .npz files by the names of the graph's inputs and
outputs; paths are relative to the manifest. Each file has to pass the checker of the `onnx` package
with shape inference, and each output of ONNX Runtime to have the dtype and shape expected and
|found - expected| <= atol + rtol * |expected| (default: 0). `steps` gives the quantization step of
outputs by name: those may be `max_quant_steps` (default: 1) of it off instead. With
`"runtime": "reference"` the evaluator of the `onnx` package takes ONNX Runtime's place.
Prints a line a file, and exits with 1 if one failed.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator


def compare(name, found, expected, entry):
    """The reason why an output is wrong, or none; and how far it is off."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return (
            f"{name}: found {found.dtype}{list(found.shape)}, "
            f"expected {expected.dtype}{list(expected.shape)}"
        ), 0.0
    if found.size == 0:
        return None, 0.0
    if not np.issubdtype(found.dtype, np.number):
        return (None if np.array_equal(found, expected) else f"{name}: differs"), 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    step = entry.get("steps", {}).get(name)
    if step is None:
        allowed = entry.get("atol", 0.0) + entry.get("rtol", 0.0) * np.abs(b)
    else:
        # A step more or less is computed in single precision.
        allowed = entry.get("max_quant_steps", 1) * step + 1e-6 * (step + np.abs(b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(a - b))
        wrong = ~(same | (np.isfinite(b) & (off <= allowed)))
    if not wrong.any():
        return None, off.max()
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{name}: {wrong.sum()} of {wrong.size} entries differ, "
        f"the first at {list(at)}: found {found[at]}, expected {expected[at]}"
    ), np.nanmax(off)


def names_differ(what, found, given):
    if set(found) == set(given):
        return []
    return [f"the {what} are {sorted(found)}, but {sorted(given)} are given"]


def check(folder, entry):
    """The reasons why a file fails, and the largest distance from what is expected."""
    model = folder / entry["model"]
    try:
        onnx.checker.check_model(str(model), full_check=True)
    except Exception as e:
        return [f"onnx.checker: {e}"], 0.0
    inputs, outputs = (dict(np.load(folder / entry[key])) for key in ("inputs", "outputs"))
    if entry.get("runtime") == "reference":
        try:
            session = ReferenceEvaluator(str(model))
            found = session.run(None, inputs)
        except Exception as e:
            return [f"onnx.reference: {e}"], 0.0
        names = session.output_names
        reasons = names_differ("outputs", names, outputs)
        if reasons:
            return reasons, 0.0
        return compared(names, found, outputs, entry)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        reasons = names_differ("inputs", [i.name for i in session.get_inputs()], inputs)
        reasons += names_differ("outputs", names, outputs)
        reasons += [f"no output {n}" for n in entry.get("steps", {}) if n not in names]
        if reasons:
            return reasons, 0.0
        found = session.run(None, inputs)
    except Exception as e:
        return [f"onnxruntime: {e}"], 0.0
    return compared(names, found, outputs, entry)


def compared(names, found, outputs, entry):
    results = [compare(n, f, outputs[n], entry) for n, f in zip(names, found, strict=True)]
    return [r for r, _ in results if r], max((d for _, d in results), default=0.0)


def main(manifest):
    manifest = pathlib.Path(manifest)
    failed = 0
    entries = json.loads(manifest.read_text())
    for entry in entries:
        reasons, distance = check(manifest.parent, entry)
        failed += bool(reasons)
        if reasons:
            print(f"{entry['model']}: FAILED: {' '.join('; '.join(reasons).split())}")
        else:
            print(f"{entry['model']}: ok, at most {distance:.2g} off")
    if not entries:
        sys.exit("nothing to check")
    if failed:
        sys.exit(f"{failed} of {len(entries)} files failed")


if __name__ == "__main__":
    main(sys.argv[1])
