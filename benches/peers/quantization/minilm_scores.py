"""How near quantized sentence embeddings are to those of the float model."""

import numpy as np
import onnxruntime as ort

BATCH = 32


def sentences(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in ("input_ids", "attention_mask")}


def alone(data):
    """One sentence at a time without padding."""
    for i, length in enumerate(data["attention_mask"].sum(axis=1)):
        yield {name: array[i : i + 1, :length] for name, array in data.items()}


def batches(data):
    for i in range(0, len(data["input_ids"]), BATCH):
        yield {name: array[i : i + BATCH] for name, array in data.items()}


def onnx_embeddings(path, data):
    """The embeddings of padded batches, in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    # Products by weights of 4 or 8 bits in float: otherwise their activations are quantized, too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, batch)[0] for batch in batches(data)])


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def neighbours(rows):
    likeness = unit(rows) @ unit(rows).T
    np.fill_diagonal(likeness, -2.0)
    return likeness.argmax(axis=1)


def scores(exact, found):
    """The mean and lowest cosine, the share of nearest neighbours kept, the mean square error."""
    cosines = (unit(exact) * unit(found)).sum(axis=1)
    kept = (neighbours(exact) == neighbours(found)).mean()
    error = ((exact.astype(np.float64) - found) ** 2).mean()
    return cosines.mean(), cosines.min(), kept, error
