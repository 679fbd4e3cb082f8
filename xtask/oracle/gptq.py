"""GPTQ as the paper's algorithm 1 has it: in float64, without blocks, the inverse by `numpy.linalg`.

Usage: gptq.py OUTPUT_FOLDER
Writes gptq.json: weights `[out, in]`, inputs `[rows, in]`, and for several settings the rounded
weights and the squared error of the outputs, of GPTQ and of rounding to nearest.
"""

import json
import pathlib
import sys

import numpy as np

rng = np.random.default_rng(3)


class Grid:
    """Integers with a scale in float32 for each group."""

    def __init__(self, bits, symmetric):
        self.low = -(2 ** (bits - 1)) if symmetric else 0
        self.high = self.low + 2**bits - 1
        self.symmetric = symmetric

    def fit(self, values):
        """Scale and zero point of each row."""
        low = np.minimum(values.min(1), 0.0)
        high = np.maximum(values.max(1), 0.0)
        if self.symmetric:
            size = np.maximum(-low, high)
            return (size / self.high).astype(np.float32), np.zeros(len(values))
        scale = ((high - low) / (self.high - self.low)).astype(np.float32)
        zero = np.round(self.low - low / scale.astype(np.float64))
        return scale, np.clip(zero, self.low, self.high)

    def round(self, values, scale, zero):
        level = np.round(values.astype(np.float32) / scale) + zero
        level = np.clip(level, self.low, self.high)
        return (level - zero).astype(np.float32) * scale


def gptq(weight, inputs, grid, group, damping, act_order, static):
    columns = weight.shape[1]
    products = inputs.T @ inputs
    diagonal = np.diag(products).copy()
    order = np.arange(columns)
    if act_order:
        order = np.argsort(-diagonal, kind="stable")
    products[np.diag_indices(columns)] += damping * diagonal.mean()
    products = products[np.ix_(order, order)]
    # H^-1 = U^T U with U upper triangular.
    upper = np.linalg.cholesky(np.linalg.inv(products)).T
    left = weight[:, order].copy()
    out = np.zeros_like(weight)
    steps = {}
    for i, column in enumerate(order):
        first = column // group * group
        if first not in steps:
            fixed = act_order or static
            source = weight if fixed else left
            steps[first] = grid.fit(source[:, first : first + group])
        rounded = grid.round(left[:, i], *steps[first])
        out[:, column] = rounded
        error = (left[:, i] - rounded) / upper[i, i]
        left[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    return out


def nearest(weight, grid, group):
    out = np.zeros_like(weight)
    for first in range(0, weight.shape[1], group):
        part = weight[:, first : first + group]
        scale, zero = grid.fit(part)
        for i in range(part.shape[1]):
            out[:, first + i] = grid.round(part[:, i], scale, zero)
    return out


def single(values):
    """Exactly what 32-bit floats hold, so that both sides start from the same numbers."""
    return values.astype(np.float32).astype(np.float64)


rows, columns, outputs = 40, 150, 4
mixing = rng.standard_normal((columns, columns)) / np.sqrt(columns)
scales = np.exp(rng.standard_normal(columns))
inputs = single((rng.standard_normal((rows, columns)) @ mixing) * scales)
weight = single(rng.standard_normal((outputs, columns)))

cases = []
for bits, symmetric, group, damping, act_order, static in [
    (4, False, 32, 0.01, False, False),
    (4, True, 16, 0.01, False, False),
    (3, False, columns, 0.05, False, False),
    (3, True, 140, 0.1, False, False),
    (2, False, 48, 0.01, True, False),
    (8, True, columns, 0.01, True, False),
    (4, False, 7, 0.02, False, True),
]:
    grid = Grid(bits, symmetric)
    found = gptq(weight, inputs, grid, group, damping, act_order, static)
    plain = nearest(weight, grid, group)
    cases.append(
        {
            "bits": bits,
            "symmetric": symmetric,
            "group": group,
            "damping": damping,
            "act_order": act_order,
            "static_groups": static,
            "weight": found.flatten().tolist(),
            "errors": (((found - weight) @ inputs.T) ** 2).sum(1).tolist(),
            "nearest_errors": (((plain - weight) @ inputs.T) ** 2).sum(1).tolist(),
        }
    )

golden = {
    "columns": columns,
    "inputs": inputs.flatten().tolist(),
    "weight": weight.flatten().tolist(),
    "cases": cases,
}
path = pathlib.Path(sys.argv[1]) / "gptq.json"
path.write_text(json.dumps(golden) + "\n")
