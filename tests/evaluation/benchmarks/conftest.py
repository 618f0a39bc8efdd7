"""A small Llama with random weights, in memory and as a folder, tokenizers of real text, and tiny benchmark data."""

import json
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.storage.store import StageStore

HELLASWAG = [
    {
        "activity_label": "Removing ice from car",
        "ctx_a": "Then, the man writes over the snow covering the window of a car, and a woman wearing winter clothes "
        "smiles.",
        "ctx_b": "then",
        "endings": [
            ", the man adds wax to the windshield and cuts it.",
            ", a person board a ski lift.",
            ", the man continues removing the snow on his car [title] quickly.",
            ", it stops.",
        ],
        "label": 2,
    },
    {
        "activity_label": "Baking cookies",
        "ctx_a": "A female chef in white uniform shows a stack of baking pans.",
        "ctx_b": "the pans",
        "endings": [
            "contain egg yolks and baking soda.",
            "are then sprinkled with brown sugar and put away.",
            "are placed in a strainer on the counter.",
            "are filled with pastries and loaded into the oven.",
        ],
        "label": "3",
    },
]


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


def small_llama(**special_tokens: int | None) -> Any:
    """Two layers of width 64 over 512 tokens; a larger initialisation than usual, so that its scores differ between
    texts."""
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
        **special_tokens,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def network() -> Any:
    """A small Llama, in memory."""
    return small_llama().eval()


@pytest.fixture(scope="session")
def checkpoint(pydoc: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama and a tokenizer trained on Python's documentation, both in one folder."""
    import transformers

    folder = tmp_path_factory.mktemp("checkpoint")
    special_tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), pydoc.end_of_text)
    small_llama(**special_tokens).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(pydoc.tokenizer_path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hellaswag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents in the official format: with a bracketed title, and labels as number and as text."""
    path = tmp_path_factory.mktemp("hellaswag") / "hellaswag_val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in HELLASWAG))
    return path


MATHQA = [
    {
        "Problem": "a shopkeeper sold it offering a discount of 5 % and earned a profit of 31.1 % . what is it?",
        "options": "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these",
        "correct": "a",
        "category": "gain",
    },
    {
        "Problem": "average age of students of an adult school is 40 years . how many new students joined ?",
        "options": "a ) 1,200 , b ) 120 , c ) 360 , d ) 240 , e ) 100",
        "correct": "b",
        "category": "general",
    },
]


@pytest.fixture(scope="session")
def mathqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems in the official format, an array."""
    path = tmp_path_factory.mktemp("mathqa") / "test.json"
    path.write_text(json.dumps(MATHQA))
    return path


@pytest.fixture(scope="session")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two articles as WikiText writes them; the second is longer than the model's context."""
    path = tmp_path_factory.mktemp("wikitext") / "wiki.txt"
    body = " The lobster is blue , and it 's caught with 1 @,@ 500 traps ( creels ) . \n"
    path.write_text(f" \n = Lobster = \n \n{body} \n = Trap = \n \n" + body * 40)
    return path
