"""The human text: nothing held out is trained on, and what cannot be read is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus, read_documents, split_documents
from fortifai_ray.storage.store import StageStore


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=30).filter(lambda d: len(set(d)) > 1))
def test_no_document_is_on_both_sides(documents: list[str]) -> None:
    """Also not as a copy; each side has at least one; nothing is lost; and the split is always the same."""
    train, held_out = split_documents(documents, 0.1)
    assert train
    assert held_out
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(documents)
    assert split_documents(documents, 0.1) == (train, held_out)


def test_the_held_out_share_is_the_share_asked_for() -> None:
    """On the text that every CPython carries, to within one of its shorter documents."""
    documents = read_documents(CorpusConfig(source="pydoc"))
    _, held_out = split_documents(documents, 0.1)
    share = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.09 <= share <= 0.1


def test_tokens_are_the_text(corpus: Corpus) -> None:
    """Decoding the training tokens gives the training documents, and the tokenizer is an ordinary one."""
    documents = read_documents(CorpusConfig(source="pydoc"))
    train, _ = split_documents(documents, 0.1)
    first = corpus.train[: corpus.train_ends[0]]
    assert first[-1] == corpus.end_of_text
    assert corpus.decode([first[:-1]]) == [train[0]]
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_path)
    assert tokenizer.decode(first[:-1]) == train[0]
    assert tokenizer.eos_token_id == corpus.end_of_text
    assert len(corpus.train) == corpus.train_ends[-1]


def test_blocks_are_whole(corpus: Corpus) -> None:
    """Blocks cover the tokens in order, less than one block at the end left out."""
    blocks = corpus.blocks(corpus.train, 128)
    assert blocks.shape[1] == 128
    assert np.array_equal(blocks.ravel(), corpus.train[: blocks.size])
    assert len(corpus.train) - blocks.size < 128


def test_wikitext_is_split_by_article(data_dir: Path) -> None:
    """An article is a document, its sections stay inside it."""
    documents = read_documents(CorpusConfig(path=str(data_dir / "wikitext-2" / "valid.txt")))
    assert len(documents) == 60
    assert all(document.lstrip().startswith("= ") for document in documents)
    assert "= = " in documents[0]


def test_jsonl_and_text_are_read(tmp_path: Path) -> None:
    """A folder of JSON lines and plain text: a line, and a paragraph, a document."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one", "two")))
    (tmp_path / "b.txt").write_text("three\nstill three\n\nfour")
    assert read_documents(CorpusConfig(path=str(tmp_path))) == ["one", "two", "three\nstill three", "four"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"text": "one"}\n{"title": "two"}\n', "cannot be read"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.txt", "one paragraph", r"holds 1 document\(s\); at least 2"),
        ("a.pdf", "…", "is needed"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    """One line that names the file and what would be right."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=complaint) as error:
        read_documents(CorpusConfig(path=str(tmp_path / name)))
    assert name in str(error.value)


def test_a_tokenizer_that_is_not_there_is_said(tmp_path: Path, model: Path) -> None:
    """A checkpoint without a tokenizer names the folder."""
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        prepare_corpus(CorpusConfig(source="pydoc"), ModelConfig(path=str(model)), StageStore(tmp_path))
