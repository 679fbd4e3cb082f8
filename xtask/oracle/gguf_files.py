"""A GGUF file by the reference library, and the entries of each tensor as it reads them back.

Usage: gguf_files.py OUTPUT_FOLDER
Writes gguf.json: the file's bytes as hexadecimal digits; by name the entries that went in, the
type, and the entries that are read back.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type


def entries():
    """Entries that are the same bits on every machine: several scales, signs, ties and zeros."""
    index = np.arange(6 * 64, dtype=np.uint64)
    mixed = (index * np.uint64(2654435761) + np.uint64(977)) % np.uint64(1 << 32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(1 << 32)
    uniform = (mixed >> np.uint64(16)).astype(np.float64) / (1 << 16) - 0.5
    x = uniform.reshape(6, 64)
    x[1] *= 1000
    x[2] = np.round(x[2] * 16) / 8
    x[3, :32] = 0
    x[3, 32:] = 0.25
    x[4] = -np.abs(x[4]) * 1e-3
    x[5] *= 1e-7
    return x.astype(np.float32)


def main(folder):
    x = entries()
    path = folder / "file.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_uint32("test.block_count", 2)
    writer.add_float32("test.epsilon", 1e-6)
    writer.add_bool("test.flag", True)
    writer.add_array("test.tokens", ["[PAD]", "größe", ""])
    writer.add_array("test.types", [1, -2, 3])
    tensors = {}
    for kind in [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1]:
        stored = gguf.quants.quantize(x, kind)
        name = f"w.{kind.name.lower()}"
        writer.add_tensor(name, stored, raw_dtype=kind)
        read = gguf.quants.dequantize(stored, kind)
        tensors[name] = {"type": kind.name, "read": read.flatten().astype(float).tolist()}
    writer.add_tensor("scale", np.float32([0.5, 2.0, -1.0]))
    tensors["scale"] = {"type": "F32", "read": [0.5, 2.0, -1.0]}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = {
        "file": path.read_bytes().hex(),
        "shape": list(x.shape),
        "entries": x.flatten().astype(float).tolist(),
        "tensors": tensors,
    }
    path.unlink()
    (folder / "gguf.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
