"""Trajectories of PyTorch's optimizers on a small least-squares problem.

Writes optimizers.json: the problem, and for each setting the parameters after 50 steps and at
some steps before.
"""

import json
import pathlib
import sys

import torch

torch.set_num_threads(1)
STEPS = 50


def problem():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, generator=g)
    y = torch.randn(12, 3, generator=g)
    w = torch.randn(3, 5, generator=g) * 0.5
    return x, y, w


SETTINGS = {
    "gradient_descent": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd_decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "momentum_dampening": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop_centered": lambda p: torch.optim.RMSprop(
        p, lr=0.01, alpha=0.9, centered=True, momentum=0.5, weight_decay=0.01
    ),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adagrad_decay": lambda p: torch.optim.Adagrad(
        p, lr=0.1, lr_decay=0.05, initial_accumulator_value=0.1
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam_decay": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def main(folder):
    x, y, start = problem()
    out = {
        "x": x.flatten().tolist(),
        "y": y.flatten().tolist(),
        "w": start.flatten().tolist(),
        "steps": STEPS,
        "settings": {},
    }
    for name, make in SETTINGS.items():
        w = start.clone().requires_grad_()
        optimizer = make([w])
        losses = []
        for _ in range(STEPS):
            loss = torch.nn.functional.mse_loss(x @ w.T, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        out["settings"][name] = {"losses": losses, "w": w.detach().flatten().tolist()}
    path = pathlib.Path(folder) / "optimizers.json"
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
