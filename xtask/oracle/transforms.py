"""Fitted transforms of scikit-learn, for opt-data.

Usage: transforms.py OUTPUT_FOLDER
Writes transforms.json. Inputs are numbers that f32 holds; NaN is written as null.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import zscore
from sklearn.decomposition import PCA
from sklearn.feature_selection import (
    SelectKBest,
    chi2,
    f_classif,
    mutual_info_classif,
)
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    LabelEncoder,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

warnings.filterwarnings("ignore")


def f32(x):
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def plain(x):
    """Lists, with null for NaN and text for infinities."""
    if isinstance(x, np.ndarray):
        return [plain(v) for v in x]
    if isinstance(x, (float, np.floating)):
        if np.isnan(x):
            return None
        return float(x) if np.isfinite(x) else str(float(x))
    return x.item() if isinstance(x, np.generic) else x


def scaling(train, test):
    out = {"train": plain(train), "test": plain(test)}
    s = StandardScaler().fit(train)
    out["standard"] = {
        "mean": plain(s.mean_),
        "std": plain(s.scale_),
        "test": plain(s.transform(test)),
    }
    for name, clip in (("min_max", False), ("min_max_clipped", True)):
        s = MinMaxScaler((-1.0, 2.0), clip=clip).fit(train)
        out[name] = {"min": plain(s.data_min_), "test": plain(s.transform(test))}
    for name, range_ in (("robust", (25.0, 75.0)), ("robust_wide", (10.0, 80.0))):
        s = RobustScaler(quantile_range=range_).fit(train)
        out[name] = {
            "center": plain(s.center_),
            "scale": plain(s.scale_),
            "test": plain(s.transform(test)),
        }
    # Tukey's fences and z-scores.
    q1, q3 = np.percentile(train, [25, 75], axis=0)
    far = 1.5 * (q3 - q1)
    out["iqr"] = plain(((test < q1 - far) | (test > q3 + far)).astype(int))
    joined = np.abs((test - train.mean(axis=0)) / train.std(axis=0))
    varies = train.std(axis=0) > 0
    assert np.allclose(
        zscore(train)[:, varies],
        ((train - train.mean(axis=0)) / train.std(axis=0))[:, varies],
    )
    out["z_score"] = plain((joined > 1.5).astype(int))
    return out


def imputing(train, test):
    out = {"train": plain(train), "test": plain(test), "fills": {}}
    for name, imputer in {
        "mean": SimpleImputer(),
        "median": SimpleImputer(strategy="median"),
        "most_frequent": SimpleImputer(strategy="most_frequent"),
        "max": SimpleImputer(strategy=np.max),
        "constant": SimpleImputer(strategy="constant", fill_value=-7.5),
    }.items():
        imputer.fit(train)
        out["fills"][name] = {
            "values": plain(imputer.statistics_.astype(np.float64)),
            "test": plain(imputer.transform(test)),
        }
    return out


def encoding(train, test, labels):
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
    ordinal = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1
    ).fit(train)
    return {
        "train": plain(train),
        "test": plain(test),
        "categories": [plain(c) for c in one_hot.categories_],
        "one_hot": plain(one_hot.transform(test)),
        "ordinal": plain(ordinal.transform(test)),
        "labels": plain(labels),
        "codes": plain(LabelEncoder().fit_transform(labels)),
    }


def selecting(x, y, ks):
    scores = {
        "chi2": chi2,
        "f": f_classif,
        "mutual_info": lambda x, y: mutual_info_classif(x, y, discrete_features=True),
    }
    out = {"x": plain(x), "y": plain(y), "scores": {}}
    for name, score in scores.items():
        best = [SelectKBest(score, k=k).fit(x, y) for k in ks]
        out["scores"][name] = {
            "scores": plain(np.asarray(best[0].scores_, dtype=np.float64)),
            "kept": [plain(b.get_support(indices=True)) for b in best],
        }
    return out


def principal(name, train, test, keep, whiten):
    pca = PCA(keep, whiten=whiten, svd_solver="full").fit(train)
    projected = pca.transform(test)
    return {
        "name": name,
        "train": plain(train),
        "test": plain(test),
        "keep": keep,
        "whiten": whiten,
        "mean": plain(pca.mean_),
        "components": plain(pca.components_),
        "variance": plain(pca.explained_variance_),
        "ratio": plain(pca.explained_variance_ratio_),
        "singular": plain(pca.singular_values_),
        "projected": plain(projected),
        "back": plain(pca.inverse_transform(projected)),
    }


def main(folder):
    random = np.random.default_rng(0)

    def normal(n, d):
        spread = 10.0 ** random.integers(-2, 3, d)
        shift = spread * random.normal(size=d) * 5
        return f32(random.normal(size=(n, d)) * spread + shift)

    scales = []
    for n, d in ((9, 4), (40, 6), (2, 3)):
        train, test = normal(n, d), normal(5, d)
        # Near the training part, so that some values are inside.
        test[:3] = f32(train[[0, 1, 0]] * 1.1)
        train[:, 1] = f32(0.1)
        test[0, 1] = f32(0.1)
        scales.append(scaling(train, test))

    gaps = []
    for n, d in ((12, 4), (31, 3)):
        train, test = f32(random.integers(-3, 4, (n, d)) / 2), normal(4, d)
        train[random.random((n, d)) < 0.3] = np.nan
        train[0] = f32(np.arange(d))
        test[random.random((4, d)) < 0.5] = np.nan
        gaps.append(imputing(train, test))

    codes = []
    for n, d in ((8, 2), (30, 3)):
        train = f32(random.integers(-2, 3, (n, d)) * 1.5)
        test = f32(random.integers(-3, 4, (6, d)) * 1.5)
        codes.append(encoding(train, test, random.choice([-5, 2, 40, 7], n)))

    selections = []
    for n, d, classes in ((20, 5, 2), (60, 8, 4)):
        y = random.integers(0, classes, n)
        x = random.poisson(2.0, (n, d)).astype(float)
        x[:, 0] += y
        x[:, 2] = (x[:, 2] + 3 * y) // 2
        selections.append(selecting(x, y * 3 - 1, [1, 3, d - 1]))

    components = [
        principal("more examples", normal(25, 5), normal(3, 5), 5, False),
        principal("few kept", normal(30, 6), normal(3, 6), 2, True),
        principal("by variance", f32(random.normal(size=(30, 6))), normal(3, 6), 0.8, False),
        principal("more features", normal(6, 11), normal(3, 11), 4, False),
        principal("white, more features", normal(7, 12), normal(3, 12), 5, True),
    ]
    result = {
        "scaling": scales,
        "imputing": gaps,
        "encoding": codes,
        "selecting": selections,
        "pca": components,
    }
    text = json.dumps(result) + "\n"
    Path(folder, "transforms.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
