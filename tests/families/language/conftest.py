"""A tiny corpus of real text, and a tiny model, made once."""

from pathlib import Path

import pytest

from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.models import create_model
from fortifai_ray.store import StageStore

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
