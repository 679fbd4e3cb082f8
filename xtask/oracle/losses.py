"""Losses of PyTorch and their gradients by the prediction.

Usage: losses.py OUTPUT_FOLDER
Writes losses.json.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(3)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
cases = []


def case(name, loss, prediction, target):
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target)
    value.backward()
    dump = lambda t: {"shape": list(t.shape), "data": t.detach().flatten().tolist()}
    cases.append(
        {
            "loss": name,
            "prediction": dump(prediction),
            "target": dump(target),
            "value": value.item(),
            "gradient": dump(prediction.grad),
        }
    )


def random(seed):
    """Every loss on predictions of a random shape and size."""
    g = torch.Generator().manual_seed(seed)
    size = lambda low, high: int(torch.randint(low, high, (1,), generator=g))
    shape = [size(1, 5), size(2, 6)] + [size(1, 4) for _ in range(seed % 3)]
    randn = lambda: torch.randn(shape, generator=g) * 10 ** (seed - 2)
    labels = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=g)
    case("cross_entropy", F.cross_entropy, randn(), labels)
    smooth = lambda p, t: F.cross_entropy(p, t, label_smoothing=0.2)
    case("smoothed_cross_entropy", smooth, randn(), labels)
    soft = torch.softmax(randn(), 1)
    case("soft_cross_entropy", F.cross_entropy, randn(), soft)
    case("mse", F.mse_loss, randn(), randn())
    case("mae", F.l1_loss, randn(), randn())
    case("huber", lambda p, t: F.huber_loss(p, t, delta=0.7), randn(), randn())
    case("bce", F.binary_cross_entropy_with_logits, randn(), torch.rand(shape, generator=g))
    kl = lambda p, t: F.kl_div(p, t, reduction="batchmean")
    case("kl_div", kl, torch.log_softmax(randn(), 1), soft)


def main(folder):
    logits = torch.randn(6, 4) * 3
    case("cross_entropy", F.cross_entropy, logits, torch.tensor([0, 3, 1, 1, 2, 0]))
    dense = torch.randn(2, 3, 4)
    case("cross_entropy", F.cross_entropy, dense, torch.randint(0, 3, (2, 4)))
    soft = torch.softmax(torch.randn(6, 4), 1)
    case("soft_cross_entropy", F.cross_entropy, logits, soft)
    case("mse", F.mse_loss, logits, torch.randn(6, 4))
    case("bce", F.binary_cross_entropy_with_logits, logits * 10, torch.rand(6, 4))
    soft[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    kl = lambda p, t: F.kl_div(p, t, reduction="batchmean")
    case("kl_div", kl, torch.log_softmax(logits, 1), soft)
    target = logits + torch.randn(6, 4)
    target[0, 0] = logits[0, 0]
    case("mae", F.l1_loss, logits, target)
    case("huber", lambda p, t: F.huber_loss(p, t, delta=0.7), logits, target)
    smooth = lambda p, t: F.cross_entropy(p, t, label_smoothing=0.2)
    case("smoothed_cross_entropy", smooth, logits, torch.tensor([0, 3, 1, 1, 2, 0]))
    case("smoothed_cross_entropy", smooth, dense, torch.randint(0, 3, (2, 4)))
    for seed in range(5):
        random(seed)
    path = pathlib.Path(folder) / "losses.json"
    path.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
