"""Distillation losses, written in PyTorch from the papers, and their gradients by the student.

Usage: distillation.py OUTPUT_FOLDER
Writes distillation.json.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(11)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
cases = []


def dump(t):
    return {"shape": list(t.shape), "data": t.detach().flatten().tolist()}


def case(name, loss, student, teacher, labels=None, parameters=None, **settings):
    student = student.clone().requires_grad_()
    parameters = {k: v.clone().requires_grad_() for k, v in (parameters or {}).items()}
    given = [labels] if labels is not None else []
    value = loss(student, teacher, *given, **settings, **parameters)
    value.backward()
    entry = {
        "loss": name,
        "settings": settings,
        "student": dump(student),
        "teacher": dump(teacher),
        "value": value.item(),
        "gradient": dump(student.grad),
    }
    if labels is not None:
        entry["labels"] = dump(labels)
    if parameters:
        entry["parameters"] = {k: dump(v) for k, v in parameters.items()}
        entry["parameter_gradients"] = {k: dump(v.grad) for k, v in parameters.items()}
    cases.append(entry)


def soft_targets(s, t, temperature):
    p = torch.softmax(t / temperature, 1)
    log_q = torch.log_softmax(s / temperature, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def dkd(s, t, labels, alpha, beta, temperature):
    n = s.shape[0]
    hit = F.one_hot(labels, s.shape[1]).bool()
    p, q = torch.softmax(t / temperature, 1), torch.softmax(s / temperature, 1)
    pair = lambda x: torch.stack([(x * hit).sum(1), (x * ~hit).sum(1)], 1)
    binary = F.kl_div(torch.log(pair(q)), pair(p), reduction="sum") / n
    without = lambda z: (z / temperature)[~hit].view(n, -1)
    rest = F.kl_div(
        torch.log_softmax(without(s), 1), torch.softmax(without(t), 1), reduction="sum"
    )
    return temperature**2 * (alpha * binary + beta * rest / n)


def dist(s, t, beta, gamma, tau):
    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        norms = a.norm(dim=1) * b.norm(dim=1)
        return 1 - ((a * b).sum(1) / (norms + 1e-8)).mean()

    p, q = torch.softmax(t / tau, 1), torch.softmax(s / tau, 1)
    inter = relation(q, p)
    # The columns of one example do not vary: their correlation counts as 0.
    intra = relation(q.T, p.T) if s.shape[0] > 1 else torch.ones(())
    return tau**2 * (beta * inter + gamma * intra)


def channels_last(x):
    return x if x.dim() in (2, 3) else x.movedim(1, -1)


def attention_transfer(s, t, p):
    def attention(x):
        return F.normalize(channels_last(x).abs().pow(p).mean(-1).flatten(1), dim=1)

    return (attention(s) - attention(t)).pow(2).mean()


def rkd(s, t, distance, angle):
    def distances(x):
        x = x.flatten(1)
        n = x.shape[0]
        d = torch.zeros(n, n)
        for i in range(n):
            for j in range(n):
                if i != j:
                    d[i, j] = (x[i] - x[j]).norm()
        return d / d[d > 0].mean()

    def angles(x):
        x = x.flatten(1)
        e = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    loss = torch.zeros(())
    if distance:
        loss = loss + distance * F.smooth_l1_loss(distances(s), distances(t))
    if angle:
        loss = loss + angle * F.smooth_l1_loss(angles(s), angles(t))
    return loss


def pad(s, t, eps, weight, bias):
    pooled = s if s.dim() == 2 else channels_last(s).flatten(1, -2).mean(1)
    variance = torch.exp(F.linear(pooled, weight, bias)) + eps
    if s.dim() == 3:
        variance = variance[:, None, :]
    elif s.dim() == 4:
        variance = variance[:, :, None, None]
    return ((t - s).pow(2) / variance + torch.log(variance)).mean()


def regression(s, t, temperature, weight):
    """The teacher's classifier is global average pooling and a linear layer."""
    logits = lambda x: F.linear(x.mean((2, 3)), weight)
    if temperature:
        return soft_targets(logits(s), logits(t), temperature)
    return F.mse_loss(logits(s), logits(t))


def pooled_mse(s, t):
    """Every axis of positions is averaged to the smaller of both sizes."""
    size = [min(a, b) for a, b in zip(s.shape[2:], t.shape[2:])]
    return F.mse_loss(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size))


def projected_mse(s, t, weight, bias):
    if s.dim() == 4:
        return F.mse_loss(F.conv2d(s, weight[:, :, None, None], bias), t)
    return F.mse_loss(F.linear(s, weight, bias), t)


def averaged(s, t, temperature, average):
    """Three teachers side by side in t, with weights 1, 2 and 5."""
    t, w = t.chunk(3, 1), torch.tensor([1.0, 2.0, 5.0]) / 8
    if average == "logits":
        return soft_targets(s, sum(a * z for a, z in zip(w, t)), temperature)
    p = sum(a * torch.softmax(z / temperature, 1) for a, z in zip(w, t))
    log_q = torch.log_softmax(s / temperature, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def self_distillation(s, t, labels, temperature, alpha):
    """Logits of three classifiers side by side, the deepest first."""
    deepest, *exits = s.chunk(3, 1)
    loss = F.cross_entropy(deepest, labels)
    for z in exits:
        soft = soft_targets(z, deepest.detach(), temperature)
        loss = loss + alpha * soft + (1 - alpha) * F.cross_entropy(z, labels)
    return loss


def mutual(s, t, labels, temperature, weight):
    """Logits of three students side by side."""
    students = s.chunk(3, 1)
    loss = sum(F.cross_entropy(z, labels) for z in students)
    for k, own in enumerate(students):
        for l, other in enumerate(students):
            if k != l:
                loss = loss + weight / 2 * soft_targets(own, other.detach(), temperature)
    return loss


def main(folder):
    r = torch.randn
    for n, c in [(5, 7), (1, 3), (4, 2)]:
        s, t = 2 * r(n, c), 3 * r(n, c)
        labels = torch.randint(0, c, (n,))
        for temperature in (1.0, 4.0):
            case("soft_targets", soft_targets, s, t, temperature=temperature)
            case("dkd", dkd, s, t, labels, alpha=1.5, beta=8.0, temperature=temperature)
            case("dist", dist, s, t, beta=2.0, gamma=0.5, tau=temperature)
    # A teacher that is sure, against a student that is sure of something else.
    s, t = 20 * r(3, 4), 30 * torch.eye(4)[:3]
    case("soft_targets", soft_targets, s, t, temperature=1.0)
    case("dkd", dkd, s, t, torch.tensor([0, 1, 2]), alpha=1.0, beta=2.0, temperature=1.0)
    case("soft_targets", soft_targets, r(2, 3, 5), r(2, 3, 5), temperature=2.0)

    for shape, channels in [((3, 4, 5, 3), 6), ((1, 2, 3, 3), 2), ((2, 5, 4), 3)]:
        other = list(shape)
        other[2 if len(shape) == 3 else 1] = channels
        for p in (1.0, 2.0, 4.0):
            case("attention_transfer", attention_transfer, r(shape), r(other), p=p)

    for s, t in [(r(4, 3), r(4, 5)), (r(5, 2, 3, 3), r(5, 7)), (r(2, 3), r(2, 3))]:
        case("rkd", rkd, s, t, distance=1.0, angle=0.0)
        case("rkd", rkd, s, t, distance=0.0, angle=2.0)
        case("rkd", rkd, 3 * s, t, distance=25.0, angle=50.0)

    for shape in [(3, 4), (2, 3, 5, 2), (2, 5, 3), (1, 2)]:
        c = shape[2] if len(shape) == 3 else shape[1]
        branch = {"weight": r(c, c), "bias": r(c)}
        case("pad", pad, r(shape), r(shape), parameters=branch, eps=1e-3)

    for temperature in (0.0, 2.0):
        head = {"weight": r(5, 3)}
        case(
            "regression", regression, r(2, 3, 4, 3), r(2, 3, 4, 3),
            parameters=head, temperature=temperature,
        )

    case("pooled_mse", pooled_mse, r(2, 3, 7, 4), r(2, 3, 5, 9))
    case("pooled_mse", pooled_mse, r(1, 2, 3, 8), r(1, 2, 4, 7))
    for s, t, c in [
        ((2, 3, 4, 5), (2, 6, 4, 5), (6, 3)),
        ((3, 4), (3, 2), (2, 4)),
        ((2, 5, 3), (2, 5, 4), (4, 3)),
    ]:
        projection = {"weight": r(c), "bias": r(c[0])}
        case("projected_mse", projected_mse, r(s), r(t), parameters=projection)

    for average in ("probabilities", "logits"):
        case("averaged", averaged, r(4, 3), 3 * r(4, 9), temperature=2.0, average=average)

    labels = torch.randint(0, 4, (5,))
    joint, unused = 2 * r(5, 12), torch.zeros(1)
    case("self_distillation", self_distillation, joint, unused, labels, temperature=3.0, alpha=0.4)
    case("mutual", mutual, joint, unused, labels, temperature=1.0, weight=1.0)
    case("mutual", mutual, joint, unused, labels, temperature=2.0, weight=0.5)
    path = pathlib.Path(folder) / "distillation.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
