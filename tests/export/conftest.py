"""Finished studies as a sweep leaves them, made in this process: two chains of a language model, one of a VAE."""

from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.results.writer import ResultsWriter
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study

TEXTS = {
    "name": "texts",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 300, "layers": 1}},
    "corpus": {"source": "pydoc", "train_tokens": 512},
    "regime": {"kind": "mixed", "synthetic_ratio": 0.75},
    "decoding": {"temperature": 0.8, "max_new_tokens": 24, "context_tokens": 8},
    "training": {"epochs": 1, "batch_size": 8, "block_size": 32, "learning_rate": 2.0e-3},
    "engine": {"kind": "huggingface", "dtype": "float32"},
    "evaluation": {"signs": None},
    "generations": 2,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}]},
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
}
IMAGES = {
    "name": "images",
    "family": {"kind": "vae", "data": {"source": "digits"}},
    "samples_per_generation": 32,
    "training": {"epochs": 1},
    "evaluation": {"samples": 50},
    "generations": 1,
    "collapse": {"metric": "elbo", "threshold": -300.0, "direction": "below", "relative_to": "absolute"},
}


def swept(storage: Path | str, **content: Any) -> Path:
    """Run a study's chains one after another and write its tables; returns its folder."""
    study, store = make_study(content, "study.yaml"), StageStore(storage)
    inputs, writer = check_study(study, store), ResultsWriter(study, Storage.of(storage).folder / study.name)
    for chain in study.chains:
        for result in run_chain(ChainTask.of(study, chain, inputs), Steps(store), InProcess()):
            writer.add_generation(result.row, result.samples, result.picture, result.details)
    writer.close(study.chains)
    return writer.folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(tmp_path_factory.mktemp("runs"), **TEXTS)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(tmp_path_factory.mktemp("pictures"), **IMAGES)
