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


def problem(seed, rows, inputs, outputs):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g)
    y = torch.randn(rows, outputs, generator=g)
    w = torch.randn(outputs, inputs, generator=g) * 0.5
    # In f64: where a gradient passes 0, NAdam's step takes its sign from rounding. At most learning
    # rates, though not at those below, PyTorch's own weights in f32 are up to 3e-2 off for it.
    return x.double(), y.double(), w.double()


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023, which PyTorch has not."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for theta in group["params"]:
                m = self.state[theta].setdefault("m", torch.zeros_like(theta))
                g = theta.grad
                c = beta1 * m + (1 - beta1) * g
                theta -= group["lr"] * (torch.sign(c) + group["decay"] * theta)
                m.copy_(beta2 * m + (1 - beta2) * g)


class Muon(torch.optim.Muon):
    """PyTorch's own, but for the 16 bits that it iterates in: their rounding differs from machine
    to machine by more than the tolerance."""

    def step(self):
        cast = torch.Tensor.bfloat16
        torch.Tensor.bfloat16 = torch.Tensor.clone
        try:
            super().step()
        finally:
            torch.Tensor.bfloat16 = cast


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
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adadelta_decay": lambda p: torch.optim.Adadelta(
        p, lr=2.0, rho=0.8, eps=1e-4, weight_decay=0.1
    ),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.9), amsgrad=True),
    "amsgrad_decoupled": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.02),
    "adamax_decay": lambda p: torch.optim.Adamax(
        p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1
    ),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "nadam_decay": lambda p: torch.optim.NAdam(
        p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1, momentum_decay=0.02
    ),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.02),
    "radam_decay": lambda p: torch.optim.RAdam(
        p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1
    ),
    "lion": lambda p: Lion(p, lr=0.005),
    "lion_decay": lambda p: Lion(p, lr=0.005, betas=(0.8, 0.9), weight_decay=0.5),
    "muon": lambda p: Muon(p, lr=0.02),
    "muon_tall": lambda p: Muon(
        p, lr=0.02, weight_decay=0.5, momentum=0.8, nesterov=False, ns_steps=3
    ),
    "muon_match_rms": lambda p: Muon(p, lr=0.02, adjust_lr_fn="match_rms_adamw"),
}


def solved(x, y, start):
    """The losses and last weights of every setting."""
    found = {}
    for name, make in SETTINGS.items():
        a, b, w = x, y, start
        if name.endswith("_tall"):
            # The weights get more rows than columns.
            a, b, w = y, x, start.T
        w = w.clone(memory_format=torch.contiguous_format).requires_grad_()
        optimizer = make([w])
        losses = []
        for _ in range(STEPS):
            loss = torch.nn.functional.mse_loss(a @ w.T, b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found[name] = {"losses": losses, "w": w.detach().flatten().tolist()}
    return found


def main(folder):
    problems = []
    for sizes in [(1, 12, 5, 3), (2, 9, 6, 2), (3, 20, 4, 1)]:
        x, y, w = problem(*sizes)
        problems.append(
            {
                "sizes": sizes[1:],
                "x": x.flatten().tolist(),
                "y": y.flatten().tolist(),
                "w": w.flatten().tolist(),
                "settings": solved(x, y, w),
            }
        )
    path = pathlib.Path(folder) / "optimizers.json"
    path.write_text(json.dumps(problems, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
