"""Folds and class weights of scikit-learn, for opt-data.

Usage: folds.py OUTPUT_FOLDER
Writes folds.json. Without shuffling the folds are the same, member by member.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils.class_weight import compute_class_weight

warnings.filterwarnings("ignore")


def main(folder):
    random = np.random.default_rng(0)
    cases = []
    for labels in (
        [0] * 7 + [1] * 5,
        random.integers(0, 3, 23).tolist(),
        random.choice([7, -1, 3], 40, p=[0.8, 0.1, 0.1]).tolist(),
        random.integers(0, 10, 57).tolist(),
    ):
        for k in (2, 3, 5):
            x = np.zeros((len(labels), 1))
            cases.append(
                {
                    "labels": labels,
                    "k": k,
                    "plain": [t.tolist() for _, t in KFold(k).split(x)],
                    "stratified": [
                        t.tolist() for _, t in StratifiedKFold(k).split(x, labels)
                    ],
                }
            )
    weights = []
    for classes, n in ((2, 11), (3, 20), (10, 300)):
        y = np.concatenate([np.arange(classes), random.integers(0, classes, n)])
        weights.append(
            {
                "labels": y.tolist(),
                "classes": classes,
                "weights": compute_class_weight(
                    "balanced", classes=np.arange(classes), y=y
                ).tolist(),
            }
        )
    text = json.dumps({"folds": cases, "weights": weights}) + "\n"
    Path(folder, "folds.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
