"""A small Llama with random weights and tokenizers of real text, with and without a beginning-of-text token."""

from typing import Any

import pytest

from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.storage.store import StageStore


@pytest.fixture(scope="session")
def pydoc(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Python's own documentation, in 512 tokens."""
    store = StageStore(tmp_path_factory.mktemp("store"))
    return prepare_corpus(CorpusConfig(source="pydoc"), ModelConfig(preset="llama-tiny", vocab_size=512), store)


@pytest.fixture(scope="session")
def tokenizer(pydoc: Corpus) -> Any:
    """The family's own: it adds no token to a text."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(pydoc.tokenizer_path)


@pytest.fixture(scope="session")
def tokenizer_with_start(pydoc: Corpus) -> Any:
    """The same, but each text starts with a beginning-of-text token, as OPT's, Gemma's and Llama's do."""
    import transformers
    from tokenizers import Tokenizer, processors

    raw = Tokenizer.from_file(str(pydoc.tokenizer_path / "tokenizer.json"))
    start = "<|endoftext|>"
    raw.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, raw.token_to_id(start))]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=start, eos_token=start, pad_token=start)


@pytest.fixture(scope="session")
def network() -> Any:
    """Two layers of width 64; a larger initialisation than usual, so that its scores differ between texts."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()
