"""Golden gradients from PyTorch, for the rules where conventions differ: kinks, ties, zeros,
broadcasting, masks. Usage: gradients.py OUTPUT_FOLDER"""

import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
cases = []


def number(v):
    if math.isnan(v):
        return "nan"
    if math.isinf(v):
        return "inf" if v > 0 else "-inf"
    return v


def dump(t):
    return {
        "dtype": {torch.float64: "f64", torch.int64: "i64", torch.bool: "bool"}[t.dtype],
        "shape": list(t.shape),
        "data": [number(float(v)) for v in t.detach().flatten().tolist()],
    }


def case(op, f, *inputs, cotangent=None, **attributes):
    inputs = [
        i if isinstance(i, torch.Tensor) else torch.tensor(i, dtype=torch.float64) for i in inputs
    ]
    inputs = [i.clone().requires_grad_(i.is_floating_point()) for i in inputs]
    out = f(*inputs)
    if cotangent is None:
        cotangent = torch.arange(1, out.numel() + 1, dtype=torch.float64).reshape(out.shape) / 2
    wrt = [i for i in inputs if i.is_floating_point()]
    grads = torch.autograd.grad(out, wrt, cotangent)
    cases.append(
        {
            "op": op,
            "attributes": attributes,
            "inputs": [dump(i) for i in inputs],
            "cotangent": dump(cotangent),
            "output": dump(out),
            "gradients": [dump(g) for g in grads],
        }
    )


kinks = [-7.0, -3.0, -2.5, -1.0, -0.0, 0.0, 0.5, 1.0, 2.5, 3.0, 7.0]
for op, f in {
    "Abs": torch.abs,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Round": torch.round,
    "Relu": F.relu,
    "LeakyRelu": lambda x: F.leaky_relu(x, 0.01),
    "Elu": lambda x: F.elu(x, 0.7),
    "Selu": F.selu,
    "Sigmoid": torch.sigmoid,
    "HardSigmoid": F.hardsigmoid,
    "Tanh": torch.tanh,
    "Gelu": F.gelu,
    "GeluTanh": lambda x: F.gelu(x, approximate="tanh"),
    "Silu": F.silu,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Erf": torch.erf,
    "Expm1": torch.expm1,
}.items():
    case(op, f, kinks)

pairs = ([[1.0, 2.0, -1.0], [0.0, 3.0, 0.5]], [1.0, -2.0, 0.5])
columns = ([[1.0], [2.0]], [[2.0, 1.0, -4.0]])
for op, f in {"Max": torch.maximum, "Min": torch.minimum, "Div": torch.div, "Mul": torch.mul}.items():
    case(op, f, *pairs)
    case(op, f, *columns)
case("Mod", torch.remainder, [5.5, -5.5, 5.5, -5.5], [3.0, 3.0, -3.0, -3.0])
case("Pow", torch.pow, [0.0, 0.0, 0.0, 2.0, 2.0, 0.5], [0.0, 1.0, 2.0, 0.0, -1.5, 3.0])
case("PRelu", lambda x, a: torch.where(x > 0, x, a * x), kinks, [0.25])
case(
    "Where",
    torch.where,
    torch.tensor([[True], [False]]),
    [1.0, 2.0, 3.0],
    [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
)

ties = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 0.0]]
zeros = [[1.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.5, -1.0, 4.0]]
case("ReduceMax", lambda x: torch.amax(x, 1), ties)
case("ReduceMin", lambda x: torch.amin(x, 0), ties)
case("ReduceProd", lambda x: torch.prod(x, 1), zeros)
case("ReduceMean", lambda x: torch.mean(x, 0), ties)
case("Softmax", lambda x: torch.softmax(x, 1), ties)
case("LogSoftmax", lambda x: torch.log_softmax(x, 1), ties)
case("CumSum", lambda x: torch.cumsum(x, 1), ties)
case("TopK", lambda x: torch.topk(x, 2, 1).values, [[1.0, 3.0, 2.0], [6.0, 5.0, 4.0]])
case(
    "SoftmaxCrossEntropy",
    lambda x, y: F.cross_entropy(x, y, reduction="none"),
    torch.randn(2, 3, 2, dtype=torch.float64),
    torch.tensor([[0, 2], [1, 1]]),
)

q = torch.randn(2, 3, 4, dtype=torch.float64)
k = torch.randn(2, 5, 4, dtype=torch.float64)
v = torch.randn(2, 5, 3, dtype=torch.float64)
mask = torch.randn(3, 5, dtype=torch.float64)
seen = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
attend = F.scaled_dot_product_attention
case("Attention", attend, q, k, v)
case("Attention", lambda q, k, v: attend(q, k, v, is_causal=True), q, k, v, causal=True)
case("Attention", lambda q, k, v, m: attend(q, k, v, attn_mask=m), q, k, v, mask)
case("Attention", lambda q, k, v, m: attend(q, k, v, attn_mask=m), q, k, v, seen)


def learnable(x, scale, zero_point):
    return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, -8, 7, 1.0)


x = torch.linspace(-3, 3, 13, dtype=torch.float32)


def fake(x, scale, zero_point):
    # PyTorch has the kernel in f32 only.
    return learnable(x.float(), scale.float(), zero_point.float()).double()


x = x[x.abs() != 1.5]  # -1.5 and 1.5 lie on ties that f32 and f64 round differently
case("FakeQuantize", fake, x.double(), [0.3], [2.0])

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
lines = ",\n".join(json.dumps(c) for c in cases)
(folder / "gradients.json").write_text(f"[\n{lines}\n]\n")
