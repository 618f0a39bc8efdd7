"""A tiny corpus of real text, and a tiny model, made once."""

from pathlib import Path

import numpy as np
import pytest

from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.models import create_model
from fortifai_ray.storage.store import StageStore

TINY = ModelConfig(preset="llama-tiny", vocab_size=512)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Python's own documentation, in 512 tokens."""
    return prepare_corpus(CorpusConfig(source="pydoc"), TINY, StageStore(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="session")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset with random weights."""
    folder = tmp_path_factory.mktemp("model")
    create_model(TINY, corpus, 0, folder)
    return folder


@pytest.fixture(scope="session")
def blocks(corpus: Corpus) -> Blocks:
    """Fourteen blocks of unequal length: micro-batches hold unequal numbers of targets, and the last step two rows."""
    lengths = np.full(14, 64)
    lengths[[3, 8]] = [20, 1]
    return Blocks(np.array(corpus.blocks(corpus.train, 64)[:14]), lengths)
