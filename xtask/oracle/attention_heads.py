"""A BERT-like encoder exported to ONNX by PyTorch, and its outputs with attention heads masked.

Usage: attention_heads.py OUTPUT_FOLDER
Writes attention_heads.onnx and attention_heads.json: inputs, the dense outputs, and the outputs
with some heads' contexts multiplied by zero.
"""

import json
import math
import pathlib
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(11)
torch.set_num_threads(1)
WIDTH, HEADS, INNER, LAYERS, VOCAB, LONGEST = 16, 4, 24, 2, 20, 12
MASKED = {0: [1, 3], 1: [0, 2, 3]}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def split(self, x):
        x = x.view(x.size(0), x.size(1), HEADS, WIDTH // HEADS)
        return x.permute(0, 2, 1, 3)

    def forward(self, x, bias, heads=None):
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
        context = torch.softmax(scores, -1) @ v
        if heads is not None:
            context = context * heads.view(1, HEADS, 1, 1)
        context = context.permute(0, 2, 1, 3).contiguous()
        context = context.view(context.size(0), context.size(1), WIDTH)
        return self.norm(x + self.dense(context))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.Linear(WIDTH, INNER)
        self.output = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, bias, heads=None):
        x = self.attention(x, bias, heads)
        return self.norm(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooler = nn.Linear(WIDTH, 3)

    def forward(self, ids, mask, heads=None):
        places = torch.arange(ids.size(1), device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places))
        bias = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for i, layer in enumerate(self.layers):
            x = layer(x, bias, None if heads is None else heads[i])
        return self.pooler(torch.tanh(x[:, 0]))


def main(folder):
    net = Encoder().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    ids = torch.randint(0, VOCAB, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    heads = torch.ones(LAYERS, HEADS)
    for layer, gone in MASKED.items():
        heads[layer, gone] = 0.0
    folder = pathlib.Path(folder)
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (ids, mask),
            str(folder / "attention_heads.onnx"),
            input_names=["ids", "mask"],
            output_names=["logits"],
            dynamic_axes={"ids": axes, "mask": axes, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    with torch.no_grad():
        out = {
            "ids": ids.tolist(),
            "mask": mask.tolist(),
            "masked_heads": [MASKED[i] for i in range(LAYERS)],
            "dense": net(ids, mask).tolist(),
            "masked": net(ids, mask, heads).tolist(),
        }
    (folder / "attention_heads.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
