"""Arrays as numpy saves them: dtypes, byte orders, memory orders, versions of the format.

Usage: npz.py OUTPUT_FOLDER
Writes npz.json: the bytes of each file as hexadecimal digits, and the values they hold.
"""

import io
import json
import pathlib
import sys

import numpy as np


def bytes_of(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue().hex()


def main(folder):
    values = np.array([[0, 1, -2], [3, 100, -128]])
    arrays = []

    def case(name, array, version=None):
        arrays.append(
            {
                "name": name,
                "shape": list(array.shape),
                "values": [float(v) for v in array.flatten()],
                "npy": bytes_of(array, version),
            }
        )

    for descr in ["<f2", "<f4", "<f8", "<i4", "<i8", "|i1", ">f2", ">f4", ">f8", ">i4", ">i8"]:
        case(descr, values.astype(descr))
    case("|u1", np.arange(256, dtype="|u1"))
    case("|b1", values > 0)
    case("scalar", np.array(-1.5, dtype="<f4"))
    case("empty", np.zeros((0, 3), dtype="<f4"))
    case("fortran", np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4)))
    case("big fortran", np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)))
    case("version 2", values.astype("<f4"), (2, 0))
    case("version 3", values.astype("<f4"), (3, 0))
    case("special", np.array([3.4e38, -1e-45, 65504.0], dtype="<f4"))

    archive = io.BytesIO()
    np.savez(archive, first=values.astype("<f4"), second=values > 0)
    result = {"arrays": arrays, "archive": archive.getvalue().hex()}
    (pathlib.Path(folder) / "npz.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
