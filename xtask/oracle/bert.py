"""A BERT encoder (Devlin et al. 2018) in plain PyTorch, with the names of Hugging Face's BertModel.

Usage: bert.py OUTPUT_FOLDER
Writes bert.json: the bytes of model.safetensors as hexadecimal digits, config.json, inputs, and
the outputs for each activation function.
"""

import json
import math
import pathlib
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 12,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 50,
}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def weights():
    """Numbers that are the same bits on every machine."""
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], width),
    }

    def linear(name, outputs, inputs):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name):
        shapes[f"{name}.weight"] = (width,)
        shapes[f"{name}.bias"] = (width,)

    norm("embeddings.LayerNorm")
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ["query", "key", "value"]:
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)

    tensors, count = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        index = np.arange(count, count + size, dtype=np.uint64)
        count += size
        mixed = (index * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(1 << 32)
        mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(1 << 32)
        # 16 bits a number, so that the file stays small when compressed and exact everywhere.
        uniform = (mixed >> np.uint64(16)).astype(np.float64) / (1 << 16) - 0.5
        scale, shift = (0.5, 1.0) if name.endswith("LayerNorm.weight") else (0.8, 0.0)
        tensors[name] = (uniform * scale + shift).astype("<f4").reshape(shape)
    return tensors


def safetensors(tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    # As the library lays them out: by dtype, then by name.
    for name in sorted(tensors):
        content = tensors[name].tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def encoder(w, activation, ids, mask, types):
    heads, width = CONFIG["num_attention_heads"], CONFIG["hidden_size"]

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return F.layer_norm(x, (width,), weight, bias, CONFIG["layer_norm_eps"])

    def split(x):
        return x.view(*x.shape[:2], heads, width // heads).transpose(1, 2)

    x = F.embedding(ids, w["embeddings.word_embeddings.weight"])
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + F.embedding(types, w["embeddings.token_type_embeddings.weight"])
    x = norm("embeddings.LayerNorm", x)
    visible = (1 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (split(linear(f"{layer}.attention.self.{p}", x)) for p in ["query", "key", "value"])
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads) + visible
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        context = linear(f"{layer}.attention.output.dense", context)
        x = norm(f"{layer}.attention.output.LayerNorm", x + context)
        inner = activation(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x, torch.tanh(linear("pooler.dense", x[:, 0]))


def dump(t):
    return {"shape": list(t.shape), "data": t.flatten().tolist()}


def main(folder):
    tensors = weights()
    w = {name: torch.from_numpy(t).double() for name, t in tensors.items()}
    ids = torch.tensor([[2, 17, 33, 49, 3], [2, 8, 3, 0, 0], [2, 45, 45, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    outputs = {}
    for name, activation in ACTIVATIONS.items():
        hidden, pooled = encoder(w, activation, ids, mask, types)
        outputs[name] = {"last_hidden_state": dump(hidden), "pooler_output": dump(pooled)}
    result = {
        "config": CONFIG,
        "model": safetensors(tensors).hex(),
        "inputs": {
            "input_ids": dump(ids),
            "attention_mask": dump(mask),
            "token_type_ids": dump(types),
        },
        "outputs": outputs,
    }
    (pathlib.Path(folder) / "bert.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
