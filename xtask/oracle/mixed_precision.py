"""Training under torch.autocast in bfloat16: losses of a small convolutional network with batch
normalization and of a small transformer encoder over 20 steps with two optimizers, and what the
first step computes.

Usage: mixed_precision.py OUTPUT_FOLDER
Writes mixed_precision.json: the parameters as formulas, the losses in f32 and in bf16, and the
logits and some gradients of the first step.

Sums, means and the loss are asked for in f32, which autocast does by itself on accelerators for all
but means; on the CPU it leaves them in bf16. Attention is asked for as an op that rounds its result and
its gradients: PyTorch's kernel for bf16 rounds the probabilities too. Losses with that kernel are
written besides. PyTorch's portable kernels are asked for, since those that it
chooses for a processor add in other orders, and a sum that rounds the other way in bf16 shows.
"""

import json
import math
import os
import pathlib
import sys

os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False
STEPS = 20

# Name, shape, offset, scale: entry i is offset + scale * sin(1.7 i + the index in the list).
CNN = [
    ("conv1.weight", [8, 1, 3, 3], 0.0, 0.4),
    ("norm1.weight", [8], 1.0, 0.2),
    ("norm1.bias", [8], 0.0, 0.1),
    ("conv2.weight", [12, 8, 3, 3], 0.0, 0.15),
    ("norm2.weight", [12], 1.0, 0.2),
    ("norm2.bias", [12], 0.0, 0.1),
    ("conv3.weight", [8, 12, 1, 1], 0.0, 0.3),
    ("conv3.bias", [8], 0.0, 0.2),
    ("fc.weight", [4, 8], 0.0, 0.3),
    ("fc.bias", [4], 0.0, 0.1),
]
WIDTH, HEADS, HIDDEN, STEPS_OF_A_SEQUENCE, WORDS = 16, 2, 32, 6, 12
SQUARE = [WIDTH, WIDTH]
TRANSFORMER = [
    ("embedding.weight", [WORDS, WIDTH], 0.0, 0.7),
    ("position", [STEPS_OF_A_SEQUENCE, WIDTH], 0.0, 0.3),
    *(
        (f"layers.0.norm{i}.{name}", [WIDTH], offset, 0.1)
        for i in (1, 2)
        for name, offset in (("weight", 1.0), ("bias", 0.0))
    ),
    *(
        (f"layers.0.self_attn.{p}_proj.{name}", shape, 0.0, scale)
        for p in ("q", "k", "v", "out")
        for name, shape, scale in (("weight", SQUARE, 0.35), ("bias", [WIDTH], 0.1))
    ),
    ("layers.0.linear1.weight", [HIDDEN, WIDTH], 0.0, 0.3),
    ("layers.0.linear1.bias", [HIDDEN], 0.0, 0.1),
    ("layers.0.linear2.weight", [WIDTH, HIDDEN], 0.0, 0.25),
    ("layers.0.linear2.bias", [WIDTH], 0.0, 0.1),
    ("norm.weight", [WIDTH], 1.0, 0.1),
    ("norm.bias", [WIDTH], 0.0, 0.1),
    ("fc.weight", [4, WIDTH], 0.0, 0.3),
    ("fc.bias", [4], 0.0, 0.1),
]


def wave(index, shape, offset, scale):
    n = math.prod(shape)
    values = [offset + scale * math.sin(1.7 * i + index) for i in range(n)]
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def cnn(p, state, x):
    y = F.conv2d(x, p["conv1.weight"], None, padding=1)
    y = F.batch_norm(y, *state[0], p["norm1.weight"], p["norm1.bias"], training=True)
    y = F.max_pool2d(F.relu(y), 2)
    y = F.conv2d(y, p["conv2.weight"], None, padding=1)
    y = F.batch_norm(y, *state[1], p["norm2.weight"], p["norm2.bias"], training=True)
    y = F.conv2d(F.relu(y), p["conv3.weight"], p["conv3.bias"])
    y = F.relu(y).float().mean((2, 3))
    return F.linear(y, p["fc.weight"], p["fc.bias"])


def whole(q, k, v):
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def transformer(p, _, tokens, attend=whole):
    def norm(x, name):
        return F.layer_norm(x, [WIDTH], p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def heads(x):
        return x.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)

    x = F.embedding(tokens, p["embedding.weight"]) + p["position"]
    y = norm(x, "layers.0.norm1")
    q, k, v = (heads(linear(y, f"layers.0.self_attn.{n}_proj")) for n in "qkv")
    y = attend(q, k, v).transpose(1, 2).flatten(2)
    x = x + linear(y, "layers.0.self_attn.out_proj")
    y = norm(x, "layers.0.norm2")
    y = F.gelu(linear(y, "layers.0.linear1"))
    x = x + linear(y, "layers.0.linear2")
    return linear(norm(x, "norm").mean(1), "fc")


def fused_transformer(p, state, tokens):
    return transformer(p, state, tokens, F.scaled_dot_product_attention)


def images():
    return wave(3, [16, 1, 8, 8], 0.0, 1.0)


def tokens():
    return torch.tensor([[(3 * i + i * j + j) % WORDS for j in range(STEPS_OF_A_SEQUENCE)] for i in range(16)])


# Parameters whose gradients in the first step are written.
GRADIENTS = {
    "cnn": ["conv1.weight", "norm1.weight", "conv3.weight", "conv3.bias", "fc.weight"],
    "transformer": [
        "position",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.v_proj.bias",
        "layers.0.linear1.bias",
        "norm.weight",
    ],
}

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=0.1),
}


def train(model, parameters, inputs, make, bf16):
    p = {n: wave(i, *rest).requires_grad_() for i, (n, *rest) in enumerate(parameters)}
    state = [(torch.zeros(c), torch.ones(c)) for c in (8, 12)]
    optimizer = make(p.values())
    labels = torch.arange(16) % 4
    losses = []
    first = {}
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(p, state, inputs)
        assert logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(v.grad.dtype == torch.float32 for v in p.values())
        if step == 0:
            first["logits"] = logits.flatten().tolist()
            names = GRADIENTS["cnn" if model is cnn else "transformer"]
            first |= {n: p[n].grad.flatten().tolist() for n in names}
            if model is cnn:
                for i, (mean, var) in enumerate(state, 1):
                    first[f"norm{i}.running_mean"] = mean.tolist()
                    first[f"norm{i}.running_var"] = var.tolist()
        optimizer.step()
        losses.append(loss.item())
    return losses, first


def main(folder):
    out = {}
    for name, model, parameters, inputs in (
        ("cnn", cnn, CNN, images()),
        ("transformer", transformer, TRANSFORMER, tokens()),
    ):
        runs, first = {}, {}
        for optimizer, make in OPTIMIZERS.items():
            f32, first["f32"] = train(model, parameters, inputs, make, False)
            bf16, first["bf16"] = train(model, parameters, inputs, make, True)
            runs[optimizer] = {"f32": f32, "bf16": bf16}
            if model is transformer:
                fused, _ = train(fused_transformer, parameters, inputs, make, True)
                runs[optimizer]["bf16_fused"] = fused
        out[name] = {"parameters": parameters, "first": first, "runs": runs}
    path = pathlib.Path(folder) / "mixed_precision.json"
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
