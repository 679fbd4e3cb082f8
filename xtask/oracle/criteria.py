"""Pruning criteria computed by PyTorch, as their papers define them.

Usage: criteria.py OUTPUT_FOLDER
Writes criteria.json: a small convolutional network with its data, and for each criterion the
scores of single weights or of channels.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(5)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1)
        self.fc1 = nn.Linear(5 * 4 * 4, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def dump(t):
    # Exactly what 32-bit floats hold, so that both sides start from the same numbers.
    return {"shape": list(t.shape), "data": t.detach().flatten().tolist()}


def lamp(w):
    """Lee et al. 2021, equation 6: the sum runs over the weights that are no smaller."""
    square = w.flatten() ** 2
    return torch.stack([s / square[square >= s].sum() for s in square])


def main(folder):
    net = Net()
    with torch.no_grad():
        net.bn1.weight.copy_(torch.randn(6))
        net.bn1.bias.copy_(torch.randn(6))
        net.bn1.running_mean.copy_(torch.randn(6) * 0.3)
        net.bn1.running_var.copy_(torch.rand(6) + 0.5)
        for p in list(net.parameters()) + list(net.buffers()):
            if p.is_floating_point():
                p.copy_(p.float().double())
    net.eval()
    images = torch.randn(12, 2, 4, 4).float().double()
    labels = torch.randint(0, 3, (12,))
    weights = {n: p for n, p in net.named_parameters() if p.dim() >= 2}
    size = 4
    entries = {n: torch.zeros_like(p) for n, p in weights.items()}
    filters = {n: torch.zeros(p.shape[0]) for n, p in weights.items()}
    batches = range(0, len(images), size)
    for start in batches:
        net.zero_grad()
        logits = net(images[start : start + size])
        F.cross_entropy(logits, labels[start : start + size]).backward()
        for n, p in weights.items():
            product = (p.grad * p).detach()
            entries[n] += product.abs() / len(batches)
            filters[n] += product.flatten(1).sum(1) ** 2 / len(batches)
    fpgm = {}
    for n, p in weights.items():
        rows = p.detach().flatten(1)
        fpgm[n] = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    out = {
        "state": {n: dump(p) for n, p in net.state_dict().items() if p.is_floating_point()},
        "images": dump(images),
        "labels": labels.tolist(),
        "batch_size": size,
        "taylor_weights": {n: t.flatten().tolist() for n, t in entries.items()},
        "taylor_channels": {n: t.tolist() for n, t in filters.items()},
        "fpgm": {n: t.tolist() for n, t in fpgm.items()},
        "lamp": {n: lamp(p.detach()).tolist() for n, p in weights.items()},
        "batch_norm": net.bn1.weight.detach().abs().tolist(),
    }
    path = pathlib.Path(folder) / "criteria.json"
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
