"""Golden values of the metrics in opt-eval, from scikit-learn.

Usage: metrics.py OUTPUT_FOLDER
Writes metrics.json, and metrics_random.json with many random cases.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
    top_k_accuracy_score,
)

warnings.filterwarnings("ignore")


def case(name, truth, predicted, classes):
    labels = list(range(classes))
    out = {
        "name": name,
        "classes": classes,
        "truth": [int(v) for v in truth],
        "predicted": [int(v) for v in predicted],
        "accuracy": accuracy_score(truth, predicted),
        "confusion": confusion_matrix(truth, predicted, labels=labels).tolist(),
        "zero_division": [],
    }
    for value in (0, 1):
        p, r, f, support = precision_recall_fscore_support(
            truth, predicted, labels=labels, zero_division=value
        )
        entry = {
            "value": value,
            "precision": p.tolist(),
            "recall": r.tolist(),
            "f1": f.tolist(),
            "support": [int(v) for v in support],
        }
        # Without a list of labels: over those that occur.
        for average in ("macro", "micro", "weighted"):
            p, r, f, _ = precision_recall_fscore_support(
                truth, predicted, average=average, zero_division=value
            )
            entry[average] = [float(p), float(r), float(f)]
        out["zero_division"].append(entry)
    return out


def top_k(name, scores, labels, classes):
    def accuracy(k):
        # Two classes are a binary problem to scikit-learn, with one score an example.
        return top_k_accuracy_score(labels, scores, k=k, labels=list(range(classes)))

    return {
        "name": name,
        "scores": scores.tolist(),
        "labels": [int(v) for v in labels],
        "accuracy": [float(accuracy(k)) for k in range(1, classes)],
    }


def random_classes(seed):
    """Scores with ties, labels that lean towards the largest score; every class occurs."""
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 6))
    n = int(random.integers(classes + 1, 30))
    weights = random.integers(1, 12, size=(n, classes))
    labels = np.where(
        random.random(n) < 0.6, weights.argmax(axis=1), random.integers(0, classes, n)
    )
    labels[:classes] = np.arange(classes)
    scores = weights / weights.sum(axis=1, keepdims=True)
    predicted = scores.argmax(axis=1)
    every = list(range(classes))
    out = {
        "seed": seed,
        "weights": weights.tolist(),
        "labels": labels.tolist(),
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "matthews": matthews_corrcoef(labels, predicted),
        "cohen_kappa": cohen_kappa_score(labels, predicted),
        "log_loss": log_loss(labels, scores, labels=every),
        "f1_of_classes": precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=0
        )[2].tolist(),
    }
    for average in ("macro", "micro", "weighted"):
        p, r, f, _ = precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        out[average] = [float(p), float(r), float(f)]
    if classes == 2:
        out["roc_auc"] = roc_auc_score(labels, scores[:, 1])
    else:
        out["top_2"] = top_k_accuracy_score(labels, scores, k=2, labels=every)
        for average in ("macro", "micro", "weighted"):
            out["roc_auc_" + average] = roc_auc_score(
                labels, scores, multi_class="ovr", average=average, labels=every
            )
    return out


def random_numbers(seed):
    random = np.random.default_rng(seed)
    outputs = int(random.integers(1, 4))
    n = int(random.integers(2, 20))
    truth = random.normal(size=(n, outputs)).round(2) * 10.0 ** random.integers(-2, 3)
    predicted = (truth + random.normal(size=(n, outputs)) * random.random()).round(3)
    if seed % 10 == 0:
        truth[:, 0] = 1.0
    return {
        "seed": seed,
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "mse": mean_squared_error(truth, predicted),
        "rmse": root_mean_squared_error(truth, predicted),
        "mae": mean_absolute_error(truth, predicted),
        "r2": r2_score(truth, predicted),
    }


def main(folder):
    random = np.random.default_rng(0)
    ten = random.integers(0, 10, 200)
    noisy = np.where(random.random(200) < 0.7, ten, random.integers(0, 10, 200))
    two = random.integers(0, 2, 50)
    cases = [
        case("ten classes", ten, noisy, 10),
        case("two classes", two, random.integers(0, 2, 50), 2),
        case("all right", [0, 1, 2, 1], [0, 1, 2, 1], 3),
        case("all wrong", [0, 1, 2, 1], [1, 2, 0, 0], 3),
        case("a class is never predicted", [0, 1, 2, 2, 0], [0, 0, 2, 2, 0], 3),
        case("a class never occurs", [0, 0, 2, 2, 0], [0, 1, 2, 2, 0], 3),
        case("a class is in neither", [0, 0, 3, 3], [0, 3, 3, 0], 5),
        case("one class", [0, 0, 0], [0, 0, 0], 1),
        case("one example", [1], [0], 2),
    ]
    scores = random.normal(size=(40, 5)).round(3)
    ties = random.integers(0, 3, size=(40, 4)).astype(float)
    tops = [
        top_k("distinct scores", scores, random.integers(0, 5, 40), 5),
        top_k("ties", ties, random.integers(0, 4, 40), 4),
    ]
    text = json.dumps({"confusion": cases, "top_k": tops}, indent=1) + "\n"
    Path(folder, "metrics.json").write_text(text)
    random = {
        "classes": [random_classes(seed) for seed in range(80)],
        "numbers": [random_numbers(seed) for seed in range(40)],
    }
    Path(folder, "metrics_random.json").write_text(json.dumps(random) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
