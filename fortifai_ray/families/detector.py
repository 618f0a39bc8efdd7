"""The classifier of a detector: a logistic regression on features of human against synthetic items, of any family.

It is fitted once for each fifth of its examples, without that fifth, which it then judges: the human data that it was
trained on are in the pool, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fortifai_ray.families.language.ngrams import ngrams_of_rows
from fortifai_ray.recipe.curation import AUROC, FOUND, FOUND_RIGHT
from fortifai_ray.seeds import generator

VERSION = 1  # bump when the same items give another classifier, or other draws
_FOLDS = 5
_PENALTY = 100.0  # inverse strength of the penalty on the weights


def counts(tokens: np.ndarray, row: np.ndarray, rows: int, features: int) -> Any:
    """Counts of each row's tokens and pairs of neighbours, by a hash, at norm 1: a sparse matrix (rows, features).

    Args:
        tokens: (tokens,) of all rows, one after the other.
        row: (tokens,) the row of each, ascending.
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    hashes, owners = zip(*(ngrams_of_rows(tokens, row, n) for n in (1, 2)), strict=True)
    owner, column = np.concatenate(owners), (np.concatenate(hashes) % np.uint64(features)).astype(np.int64)
    return normalize(csr_matrix((np.ones(len(owner)), (owner, column)), shape=(rows, features)))


def fit(examples: Any, human: np.ndarray) -> dict[str, np.ndarray]:
    """The classifier of ``examples`` (n, features), of which some are ``human`` (n,).

    Returns ``weights`` (folds, features + 1, the last one constant), ``folds`` (n,) the fold that left out each
    example, ``decisions`` (n,) on each by that fold, and ``calibration`` (2,): p(human) = σ(slope · decision +
    intercept), fitted to these (Platt 1999), both kinds weighing the same.
    """
    from sklearn.linear_model import LogisticRegression

    random = generator(0, "folds")
    folds = np.zeros(len(human), np.int64)
    for kind in (human, ~human):
        folds[kind] = random.permutation(np.arange(kind.sum()) % _FOLDS)
    weights, judged = np.zeros((_FOLDS, examples.shape[1] + 1), np.float32), np.zeros(len(human))
    for fold in range(_FOLDS):
        model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
        model.fit(examples[folds != fold], human[folds != fold])
        weights[fold] = [*model.coef_[0], *model.intercept_]
        judged[folds == fold] = _decide(weights[fold], examples[folds == fold])
    scale = LogisticRegression(C=1e6, class_weight="balanced").fit(judged[:, None], human)
    calibration = np.array([scale.coef_[0, 0], scale.intercept_[0]])
    return {"weights": weights, "folds": folds, "decisions": judged, "calibration": calibration}


def _decide(weights: np.ndarray, examples: Any) -> np.ndarray:
    decided: np.ndarray = examples @ weights[:-1].astype(np.float64) + weights[-1]
    return decided


def decisions(known: Mapping[str, np.ndarray], examples: Any, folds: Sequence[int]) -> np.ndarray:
    """(n,) The decision on each of ``examples`` (n, features) by the fold that left it out, or by all (fold −1) their
    mean."""
    each = np.stack([_decide(weights, examples) for weights in known["weights"]])
    chosen = np.array(folds, dtype=np.int64)
    return np.where(chosen < 0, each.mean(0), each[chosen, np.arange(len(chosen))])


def probabilities(known: Mapping[str, np.ndarray], decided: np.ndarray) -> np.ndarray:
    """(n,) The calibrated probability of being human of items that were decided on so."""
    slope, intercept = known["calibration"]
    with np.errstate(over="ignore"):
        human: np.ndarray = 1 / (1 + np.exp(-(slope * decided + intercept)))
    return human


def draw_weights(human: np.ndarray, bias: float) -> np.ndarray:
    """(n,) The weights by which items of these probabilities are drawn, 1 the largest."""
    with np.errstate(divide="ignore"):
        logs = bias * np.log(human) if bias else np.zeros(len(human))
    return np.exp(logs - logs.max(initial=-np.inf))


def measures(human: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What is detected has a probability of at most a half; None for a pool of one kind."""
    from sklearn.metrics import roc_auc_score

    found = human <= 0.5
    right = int((found & ~truth).sum())
    both = 0 < truth.sum() < len(truth)
    return {
        FOUND_RIGHT: right / int(found.sum()) if found.any() else 1.0,
        FOUND: right / int((~truth).sum()) if not truth.all() else 1.0,
        AUROC: float(roc_auc_score(truth, human)) if both else None,
    }
