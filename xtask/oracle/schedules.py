"""Learning rates of PyTorch's schedulers.

Writes schedules.json: for each setting the rate of every step of a run; for plateaus the metric of
every epoch too, and the rate after it.
"""

import json
import pathlib
import sys
import warnings

import torch
from torch.optim import lr_scheduler as sched

STEPS = 100

SETTINGS = {
    "step": lambda o: sched.StepLR(o, 7, gamma=0.5),
    "multi_step": lambda o: sched.MultiStepLR(o, [10, 11, 60], gamma=0.3),
    "exponential": lambda o: sched.ExponentialLR(o, 0.97),
    "polynomial": lambda o: sched.PolynomialLR(o, STEPS, power=2.0),
    "linear": lambda o: sched.PolynomialLR(o, STEPS, power=1.0),
    "cosine": lambda o: sched.CosineAnnealingLR(o, STEPS, eta_min=0.01),
    "cosine_restarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 15, eta_min=0.02),
    "cosine_restarts_longer": lambda o: sched.CosineAnnealingWarmRestarts(o, 9, T_mult=2),
    "warmup": lambda o: sched.LinearLR(o, start_factor=1 / 20, total_iters=19),
    "one_cycle": lambda o: sched.OneCycleLR(o, 0.4, total_steps=STEPS),
    "one_cycle_linear": lambda o: sched.OneCycleLR(
        o, 0.4, total_steps=STEPS, pct_start=0.45, anneal_strategy="linear", div_factor=10,
        final_div_factor=50,
    ),
    "one_cycle_three_phases": lambda o: sched.OneCycleLR(
        o, 0.4, total_steps=STEPS, pct_start=0.2, three_phase=True
    ),
}

PLATEAUS = {
    "plateau": ("min", dict(factor=0.5, patience=3)),
    "plateau_cooldown": ("min", dict(factor=0.3, patience=1, cooldown=4, min_lr=1e-4)),
    "plateau_threshold": ("min", dict(factor=0.5, patience=2, threshold=0.2)),
    "plateau_accuracy": ("max", dict(factor=0.5, patience=4, threshold=0.05)),
}


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)


def main(folder):
    # The optimizer is never stepped here.
    warnings.simplefilter("ignore")
    rates = {}
    for name, make in SETTINGS.items():
        o = optimizer()
        scheduler = make(o)
        rates[name] = []
        for step in range(STEPS):
            rates[name].append(o.param_groups[0]["lr"])
            if step + 1 < STEPS:
                scheduler.step()
    g = torch.Generator().manual_seed(5)
    plateaus = {}
    for name, (mode, options) in PLATEAUS.items():
        o = optimizer()
        scheduler = sched.ReduceLROnPlateau(o, mode=mode, eps=0, **options)
        noise = torch.rand(STEPS, generator=g, dtype=torch.float64)
        falls = torch.exp(-torch.arange(STEPS, dtype=torch.float64) / 20) + 0.3 * noise
        metrics = (falls if mode == "min" else 1 - falls / 2).tolist()
        after = []
        for metric in metrics:
            scheduler.step(metric)
            after.append(o.param_groups[0]["lr"])
        plateaus[name] = {"metrics": metrics, "rates": after}
    path = pathlib.Path(folder) / "schedules.json"
    path.write_text(json.dumps({"rates": rates, "plateaus": plateaus}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
