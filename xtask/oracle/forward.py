"""Golden outputs from PyTorch of convolution, pooling, normalization and recurrence.

Usage: forward.py OUTPUT_FOLDER
Writes forward.json: a list of cases with inputs and outputs; `op` names the construction in the
suite's `forward/golden.rs`.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
cases = []


def dump(t):
    return {"shape": list(t.shape), "data": t.detach().flatten().tolist()}


def case(op, inputs, outputs):
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    cases.append(
        {"op": op, "inputs": [dump(t) for t in inputs], "outputs": [dump(t) for t in outputs]}
    )


def convolutions():
    x, w, b = torch.randn(2, 3, 9), torch.randn(4, 3, 3), torch.randn(4)
    case("conv1d stride 2 pad 1", [x, w, b], F.conv1d(x, w, b, stride=2, padding=1))
    x, w, b = torch.randn(2, 3, 8, 7), torch.randn(5, 3, 3, 3), torch.randn(5)
    case("conv2d", [x, w, b], F.conv2d(x, w, b))
    case("conv2d stride 2 pad 1", [x, w, b], F.conv2d(x, w, b, stride=2, padding=1))
    case("conv2d dilation 2 pad 2", [x, w, b], F.conv2d(x, w, b, dilation=2, padding=2))
    x, w, b = torch.randn(2, 4, 6, 6), torch.randn(6, 2, 3, 3), torch.randn(6)
    case("conv2d groups 2 pad 1", [x, w, b], F.conv2d(x, w, b, padding=1, groups=2))
    w, b = torch.randn(8, 1, 3, 3), torch.randn(8)
    case("conv2d groups 4 pad 1", [x, w, b], F.conv2d(x, w, b, padding=1, groups=4))
    x, w, b = torch.randn(1, 2, 4, 5, 3), torch.randn(3, 2, 2, 3, 2), torch.randn(3)
    case("conv3d pad 1", [x, w, b], F.conv3d(x, w, b, padding=1))
    x, w, b = torch.randn(2, 3, 4, 5), torch.randn(3, 2, 3, 3), torch.randn(2)
    out = F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1)
    case("conv_transpose2d stride 2 pad 1 output 1", [x, w, b], out)
    x, w, b = torch.randn(2, 4, 5), torch.randn(4, 3, 3), torch.randn(6)
    out = F.conv_transpose1d(x, w, b, dilation=2, groups=2)
    case("conv_transpose1d groups 2 dilation 2", [x, w, b], out)


def pools():
    x = torch.randn(2, 3, 7, 6)
    case("max_pool 2", [x], F.max_pool2d(x, 2))
    case("max_pool 3 stride 2 pad 1 ceil", [x], F.max_pool2d(x, 3, 2, 1, ceil_mode=True))
    case("max_pool 2 stride 1 dilation 2", [x], F.max_pool2d(x, 2, 1, 0, 2))
    case("avg_pool 2", [x], F.avg_pool2d(x, 2))
    out = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    case("avg_pool 3 stride 2 pad 1 exclude", [x], out)
    out = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
    case("avg_pool 3 stride 2 pad 1 ceil", [x], out)


def norms():
    x = torch.randn(4, 6, 3, 2)
    scale, bias, mean = torch.randn(6), torch.randn(6), torch.randn(6)
    var = torch.rand(6) + 0.5
    out = F.batch_norm(x, mean, var, scale, bias, False, 0.1, 1e-5)
    case("batch_norm eval", [x, scale, bias, mean, var], out)
    new_mean, new_var = mean.clone(), var.clone()
    out = F.batch_norm(x, new_mean, new_var, scale, bias, True, 0.1, 1e-5)
    case("batch_norm train", [x, scale, bias, mean, var], [out, new_mean, new_var])
    case("group_norm 3", [x, scale, bias], F.group_norm(x, 3, scale, bias, 1e-5))
    out = F.instance_norm(x, weight=scale, bias=bias, eps=1e-5)
    case("instance_norm", [x, scale, bias], out)
    scale, bias = torch.randn(3, 2), torch.randn(3, 2)
    case("layer_norm 2", [x, scale, bias], F.layer_norm(x, (3, 2), scale, bias, 1e-5))
    case("rms_norm 2", [x, scale], F.rms_norm(x, (3, 2), scale, 1e-5))


def onnx_order(t, order, hidden):
    """PyTorch's gate rows in ONNX's order."""
    gates = t.split(hidden)
    return torch.cat([gates[i] for i in order])


def recurrent():
    steps, batch, inputs, hidden = 4, 2, 3, 5
    x = torch.randn(steps, batch, inputs)
    for name, make, order in [
        ("lstm", torch.nn.LSTM, [0, 3, 1, 2]),
        ("gru", torch.nn.GRU, [1, 0, 2]),
    ]:
        for both in [False, True]:
            net = make(inputs, hidden, bidirectional=both)
            y, states = net(x)
            d = 2 if both else 1
            w, r, b = [], [], []
            for suffix in ["", "_reverse"][:d]:
                get = lambda what: getattr(net, f"{what}_l0{suffix}")
                w.append(onnx_order(get("weight_ih"), order, hidden))
                r.append(onnx_order(get("weight_hh"), order, hidden))
                parts = [onnx_order(get(p), order, hidden) for p in ["bias_ih", "bias_hh"]]
                b.append(torch.cat(parts))
            y = y.reshape(steps, batch, d, hidden).transpose(1, 2)
            outputs = [y, *states] if name == "lstm" else [y, states]
            label = f"{name} {'bidirectional' if both else 'forward'}"
            case(label, [x, torch.stack(w), torch.stack(r), torch.stack(b)], outputs)


def main(folder):
    convolutions()
    pools()
    norms()
    recurrent()
    path = pathlib.Path(folder) / "forward.json"
    path.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
