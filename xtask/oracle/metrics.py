"""Golden values of the metrics in opt-eval, from scikit-learn.

Usage: metrics.py OUTPUT_FOLDER
Writes metrics.json.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
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


if __name__ == "__main__":
    main(sys.argv[1])
