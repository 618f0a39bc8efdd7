"""The registry of metrics: one entry for everything that is measured, and what fidelity makes of it."""

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from fortifai_ray.evaluation.metrics import METRICS, fidelity
from fortifai_ray.evaluation.signs.config import SignsConfig
from fortifai_ray.evaluation.signs.corpus import corpus_signs
from fortifai_ray.statistics.criterion import is_log_scale


def test_names_are_keys_and_every_entry_is_filled_in() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.definition
        assert metric.source
        assert metric.unit


def test_every_corpus_sign_is_registered_as_needing_the_corpus_alone() -> None:
    values = corpus_signs(np.zeros((2, 4), dtype=np.int32), pa.array([[1, 2]]), SignsConfig()).values
    assert values.keys() == {name for name, m in METRICS.items() if m.needs == "corpus"} - {"prompt_overlap"}


def test_log_scales_are_those_of_perplexities_and_ratios() -> None:
    """As the criterion's rule by name has it; surplexity is a perplexity by its definition alone."""
    of_log_scale = {name for name, metric in METRICS.items() if metric.scale == "log"}
    assert of_log_scale == {name for name in METRICS if is_log_scale(name)} | {"surplexity"}


def test_fidelity_is_chance_normalised() -> None:
    pairs, many = METRICS["kr_accuracy"], METRICS["hellaswag_accuracy"]
    assert fidelity(pairs, 0.9, 0.9) == 1.0
    assert fidelity(pairs, 0.5, 0.9) == 0.0
    assert fidelity(many, 0.5, 0.75) == pytest.approx(0.5)
    assert fidelity(METRICS["tail_coverage"], 0.2, 0.8) == pytest.approx(0.25)
    assert math.isnan(fidelity(pairs, 0.6, 0.5))


def test_configuration_and_registry_are_light() -> None:
    """The command line reads study files without paying for torch, Ray, NumPy or Arrow."""
    code = (
        "import sys, fortifai_ray.evaluation.metrics, fortifai_ray.evaluation.signs.config;"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow', 'polars', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
