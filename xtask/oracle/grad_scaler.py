"""Trajectories of torch.amp.GradScaler with gradients that overflow at chosen steps.

Usage: grad_scaler.py OUTPUT_FOLDER
Writes grad_scaler.json: for each setting, after each step, the scale, the growth tracker, the loss
and the parameters.
"""

import json
import math
import pathlib
import sys

import torch

torch.set_num_threads(1)
STEPS = 24


def wave(shape, phase, scale):
    n = math.prod(shape)
    values = [scale * math.sin(1.3 * i + phase) for i in range(n)]
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


X, Y, W = wave([6, 4], 0.0, 1.0), wave([6, 2], 1.0, 1.0), wave([2, 4], 2.0, 0.5)

# Options of the scaler, the steps whose gradients overflow, the bound of the gradients' norm.
SETTINGS = {
    "momentum": (dict(init_scale=1024.0, growth_interval=3), [0, 4, 5, 11], None),
    "adamw": (dict(init_scale=1024.0, growth_interval=4, growth_factor=3.0), [2, 9, 10], None),
    "momentum_clip": (
        dict(init_scale=512.0, growth_interval=2, backoff_factor=0.25),
        [1, 2, 3, 15],
        0.3,
    ),
    "adamw_defaults": (dict(), [0, 1, 2], None),
    # Growth stops below infinity.
    "momentum_huge": (dict(init_scale=2.0**125, growth_interval=1), [], None),
}


def main(folder):
    out = {"x": X.flatten().tolist(), "y": Y.flatten().tolist(), "w": W.flatten().tolist()}
    out["settings"] = {}
    for name, (options, overflows, bound) in SETTINGS.items():
        w = W.clone().requires_grad_()
        if name.startswith("momentum"):
            optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW([w], lr=0.02, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", **options)
        assert scaler.is_enabled()
        steps = []
        for step in range(STEPS):
            # Squares of 1e18 are finite, their gradients times the scale are not.
            x = X * 2.0**62 if step in overflows else X
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(x @ w.T, Y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if bound is not None:
                torch.nn.utils.clip_grad_norm_([w], bound)
            scaler.step(optimizer)
            scaler.update()
            state = scaler.state_dict()
            steps.append(
                {
                    "scale": state["scale"],
                    "tracker": state["_growth_tracker"],
                    "loss": loss.item(),
                    "w": w.detach().flatten().tolist(),
                }
            )
        out["settings"][name] = {"overflows": overflows, "steps": steps}
    path = pathlib.Path(folder) / "grad_scaler.json"
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
