"""The human text: nothing held out is trained on, and what cannot be read is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import (
    END_OF_TEXT,
    Corpus,
    _tokenizer_identity,
    describe_corpus,
    prepare_corpus,
    split_documents,
)
from fortifai_ray.families.language.ngrams import shared_runs
from fortifai_ray.families.language.texts import read_documents
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
    documents = read_documents(CorpusConfig(source="pydoc")).texts
    _, held_out = split_documents(documents, 0.1)
    share = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.09 <= share <= 0.1


def test_tokens_are_the_text(corpus: Corpus) -> None:
    """Decoding the training tokens gives the training documents, and the tokenizer is an ordinary one."""
    documents = read_documents(CorpusConfig(source="pydoc")).texts
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
    documents = read_documents(CorpusConfig(path=str(data_dir / "wikitext-2" / "valid.txt"))).texts
    assert len(documents) == 60
    assert all(document.lstrip().startswith("= ") for document in documents)
    assert "= = " in documents[0]


def test_a_tokenizer_that_is_not_there_is_said(tmp_path: Path, model: Path) -> None:
    """A checkpoint without a tokenizer names the folder."""
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        prepare_corpus(CorpusConfig(source="pydoc"), ModelConfig(path=str(model)), StageStore(tmp_path))


PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT}
STATES: dict[str, dict[str, Any]] = {
    "padding": {"strategy": "BatchLongest"},
    "padding to a length": {"strategy": {"Fixed": 4096}},
    "padding on the left": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 64},
    "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    "dropout": {},
}


@pytest.fixture(scope="module")
def pretrained(corpus: Corpus, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the corpus's tokenizer, and two texts of which one is long."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("pretrained") / "clean")
    shutil.copytree(corpus.tokenizer_path, folder, dirs_exist_ok=True)
    rows = ["a short text", "another one", "a text", "words " * 400, "still another one"] * 2
    (folder.parent / "texts.jsonl").write_text("".join(json.dumps(f"{n} {row}") + "\n" for n, row in enumerate(rows)))
    return folder


@pytest.mark.parametrize("state", STATES)
def test_a_tokenizer_that_was_saved_after_a_call_encodes_as_before(
    state: str, pretrained: Path, tmp_path: Path
) -> None:
    """Padding would fill each document up to the longest, truncation cut it, dropout merge at random: the same tokens
    as without, a clean tokenizer beside them, and the dry run says so. What older stages had in them has another hash.
    """
    texts = CorpusConfig(path=str(pretrained.parent / "texts.jsonl"))
    folder = shutil.copytree(pretrained, tmp_path / "saved")
    content = json.loads((folder / "tokenizer.json").read_text())
    key = state.partition(" ")[0]
    if key == "dropout":
        content["model"]["dropout"] = 0.5
    else:
        content[key] = (PADDING if key == "padding" else {}) | STATES[state]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    store = StageStore(tmp_path)
    clean, saved = (prepare_corpus(texts, ModelConfig(path=str(at)), store) for at in (pretrained, folder))
    assert np.array_equal(saved.train, clean.train)
    assert np.array_equal(saved.held_out, clean.held_out)
    assert saved.hash != clean.hash
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((saved.tokenizer_path / name).read_text()) == json.loads(
            (clean.tokenizer_path / name).read_text()
        )
    said = [line for line in describe_corpus(texts, saved.hash, store) if line.startswith("tokenizer:")]
    assert len(said) == (key != "truncation")
    assert all(f"the {key} that" in line for line in said)
    assert not [line for line in describe_corpus(texts, clean.hash, store) if line.startswith("tokenizer:")]


def test_what_determines_the_tokens_is_their_identity(pretrained: Path, tmp_path: Path) -> None:
    """An ordinary tokenizer's files, as in older stages; without ``tokenizer.json`` its merges too. What a call left in
    it enters by name, since stages that were made before it was taken out hold other tokens under the file's hash."""
    ordinary = _tokenizer_identity(ModelConfig(path=str(pretrained)))
    assert set(ordinary) == {"tokenizer.json", "tokenizer_config.json"}
    folder = shutil.copytree(pretrained, tmp_path / "model")
    (folder / "merges.txt").write_text("a b")
    assert _tokenizer_identity(ModelConfig(path=str(folder))) == ordinary
    content = json.loads((folder / "tokenizer.json").read_text())
    content["padding"], content["model"]["dropout"] = {**PADDING, "strategy": "BatchLongest"}, 0.1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert _tokenizer_identity(ModelConfig(path=str(folder)))["left_out"] == ["padding", "dropout"]
    (folder / "tokenizer.json").unlink()
    slow = _tokenizer_identity(ModelConfig(path=str(folder)))
    (folder / "merges.txt").write_text("b a")
    assert _tokenizer_identity(ModelConfig(path=str(folder))) != slow


@pytest.mark.parametrize(
    ("documents", "said", "warned"),
    [
        (["one two", "three four"], "; 0.0% special tokens in the text; documents left out: none", False),
        (["a text " * 200 + END_OF_TEXT, "three four"], f"special tokens in the text (1 times '{END_OF_TEXT}')", False),
        (
            [f"a{END_OF_TEXT}b", f"c{END_OF_TEXT * 3}"],
            f"57.1% special tokens in the text (4 times '{END_OF_TEXT}",
            True,
        ),
    ],
)
def test_special_tokens_in_the_text_are_said(
    documents: list[str], said: str, warned: bool, pretrained: Path, tmp_path: Path
) -> None:
    """A literal end-of-text in the text becomes that token: the dry run says so, and warns where they are many."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in documents))
    config, store = CorpusConfig(path=str(tmp_path / "a.jsonl")), StageStore(tmp_path)
    made = prepare_corpus(config, ModelConfig(path=str(pretrained)), store)
    first, *warnings = describe_corpus(config, made.hash, store)
    assert said in first
    assert len(warnings) == warned
    assert all(line.startswith("warning: corpus: 57.1% of the text's tokens are special tokens") for line in warnings)


def test_the_corpus_is_described(pretrained: Path, tmp_path: Path) -> None:
    """Documents, files, what was left out, the longest document: the figures that show a mistake at once. A stage of
    an older make has them too."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n{"text": null}\n{"text": "a"}')
    (folder / "b.txt").write_text("bbbbbbbb\n\nccc")
    config, store = CorpusConfig(path=str(folder), held_out=0.3), StageStore(tmp_path)
    found = prepare_corpus(config, ModelConfig(path=str(pretrained)), store)
    del found.stage.outputs["left_out"]
    longest = max(np.diff(ends, prepend=0).max() - 1 for ends in (found.train_ends, found.held_out_ends))
    copies = 4 - len(found.train_ends) - len(found.held_out_ends)
    assert describe_corpus(config, found.hash, store) == (
        f"corpus: {folder}: {len(found.train)} training and {len(found.held_out)} held-out tokens of 4 documents in "
        f"2 files, the longest of {longest} tokens; 0.0% special tokens in the text; documents left out: 2 null, "
        "1 empty"
        + (", 1 copies of held-out ones" if copies else "; 1 training documents are copies of others, and stay"),
    )
    assert describe_corpus(config.model_copy(update={"train_tokens": 10**8}), found.hash, store)[1].startswith(
        f"warning: corpus.train_tokens: 100,000,000 are asked for, and the text has {len(found.train)}: "
    )
    exact = config.model_copy(update={"train_tokens": len(found.train)})
    assert len(describe_corpus(exact, found.hash, store)) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tokenizer.json": "{"}, r"/tokenizer\.json cannot be read .*: a complete checkpoint is needed"),
        ({"tokenizer.json": "{}"}, r"/tokenizer\.json is no tokenizer that can be read .*save_pretrained"),
        ({"tokenizer.json": '{"model": {"type": "Mine"}}'}, r"/tokenizer\.json is no tokenizer that can be read"),
        ({"tokenizer.json": "[]"}, r"/tokenizer\.json is no JSON mapping"),
        ({"tokenizer.json": ""}, r"/tokenizer\.json is empty"),
        (
            {"tokenizer.json": "version https://git-lfs.github.com/spec/v1\n"},
            r"/tokenizer\.json is a pointer of Git LFS",
        ),
        (
            {"tokenizer_config.json": "version https://git-lfs.github.com/spec/v1\n"},
            r"_config\.json is a pointer of Git",
        ),
        ({"tokenizer_config.json": "{"}, r"/tokenizer_config\.json cannot be read"),
        ({"tokenizer_config.json": "\ufeff{}"}, r"/tokenizer_config\.json begins with a byte-order mark: save it"),
        ({"tokenizer_config.json": "[]"}, r"/tokenizer_config\.json is no JSON mapping"),
        (
            {"tokenizer_config.json": '{"tokenizer_class": 5}'},
            r"/tokenizer_config\.json has tokenizer_class: 5; the name",
        ),
        (
            {"tokenizer_config.json": '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["m.T", "m.T"]}}'},
            "auto_map: the code that comes with a tokenizer is never run",
        ),
        ({"tokenizer.json": None}, "no tokenizer could be loaded from|has no fast form"),
        ({"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}'}, "has no end-of-text token"),
        ({"tokenizer.json": None, "tokenizer_config.json": '{"tokenizer_class": "ByT5Tokenizer"}'}, "has no fast form"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_said(
    change: dict[str, str | None], complaint: str, pretrained: Path, tmp_path: Path
) -> None:
    """One line with the folder, whatever transformers raises: a broken file, none, no end of text, slow forms alone."""
    folder = shutil.copytree(pretrained, tmp_path / "model")
    for name, content in change.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(UserError, match=complaint) as refused:
        prepare_corpus(CorpusConfig(source="pydoc"), ModelConfig(path=str(folder)), StageStore(tmp_path))
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


TINY = ModelConfig(preset="llama-tiny", vocab_size=512)


def write(folder: Path, **texts: str) -> dict[str, str]:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return {name: str(folder / f"{name}.txt") for name in texts}


def test_a_validation_text_is_all_that_is_held_out(tmp_path: Path) -> None:
    """The corpus is trained on whole, even one document; what of the validation text stands in it is said."""
    files = write(tmp_path, train="one two three\n\nfour five six", own="seven eight\n\nfour five six\n\nseven eight")
    config = CorpusConfig(path=files["train"], validation={"path": files["own"]})
    store = StageStore(tmp_path / "store")
    made = prepare_corpus(config, TINY, store)
    documents = made.decode([made.train.tolist()])[0].split(END_OF_TEXT)
    assert [text.strip() for text in documents if text.strip()] == ["one two three", "four five six"]
    held_out = made.decode([made.held_out.tolist()])[0].split(END_OF_TEXT)
    assert [text.strip() for text in held_out if text.strip()] == ["seven eight", "four five six"]
    said = describe_corpus(config, made.hash, store)
    assert "of 5 documents in 2 files" in said[0]
    assert "1 copies of held-out ones" in said[0]
    assert any("corpus.validation: 1 of its documents" in line for line in said)
    other = prepare_corpus(config.model_copy(update={"held_out": 0.3}), TINY, store)
    assert other.hash == made.hash, "the share is not used"
    assert prepare_corpus(CorpusConfig(path=files["train"]), TINY, store).hash != made.hash


@pytest.mark.parametrize(
    ("train", "own", "said"),
    [
        ("one two", "one two", "the corpus is the same text"),
        ("one two", "one two\n\nthree", "the corpus is the same text"),
        ("one two", "  \n", r"corpus\.validation: .*own.txt holds 0 document"),
        ("one two", None, "there is no"),
    ],
)
def test_a_validation_text_that_tests_nothing_is_refused(
    tmp_path: Path, train: str, own: str | None, said: str
) -> None:
    """With its file, before anything starts."""
    write(tmp_path, train=train, **({} if own is None else {"own": own}))

    def prepare() -> None:
        config = CorpusConfig(path=str(tmp_path / "train.txt"), validation={"path": str(tmp_path / "own.txt")})
        prepare_corpus(config, TINY, StageStore(tmp_path / "store"))

    with pytest.raises((UserError, ValidationError), match=said):
        prepare()


def test_another_split_of_a_saved_data_set_is_a_validation_text(tmp_path: Path) -> None:
    """As WikiText-2's own; a text without splits has none to give."""
    import datasets

    splits = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(3)]})
        for name in ("train", "validation")
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    made = prepare_corpus(
        CorpusConfig(path=str(tmp_path / "saved"), validation={"split": "validation"}), TINY, StageStore(tmp_path / "s")
    )
    assert "validation 2" in made.decode([made.held_out.tolist()])[0]
    assert "validation" not in made.decode([made.train.tolist()])[0]
    with pytest.raises(ValidationError, match="source has no splits"):
        CorpusConfig(source="pydoc", validation={"split": "validation"})
    with pytest.raises(ValidationError, match="exactly one of path and split"):
        CorpusConfig(source="pydoc", validation={})


@pytest.mark.parametrize(
    ("passages", "warned"),
    [
        ([" ".join(f"word{n}" for n in range(200))], True),  # a long section of two documents
        (["a", "b c"], False),  # shorter than a run
        ([], False),
    ],
)
def test_passages_of_the_held_out_text_that_are_trained_on_are_said(
    passages: list[str], warned: bool, pretrained: Path, tmp_path: Path
) -> None:
    """Documents that differ may share whole sections: a person must know that perplexity is then too low."""
    texts = [" ".join(f"n{document}x{n}" for n in range(60)) for document in range(10)]
    texts = [f"{text} {' '.join(passages)}" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    config, store = CorpusConfig(path=str(tmp_path / "a.jsonl")), StageStore(tmp_path)
    made = prepare_corpus(config, ModelConfig(path=str(pretrained)), store)
    said = describe_corpus(config, made.hash, store)[1:]
    assert ["% of the held-out text stands in the training text" in line for line in said] == [True] * warned


def test_little_of_python_s_documentation_is_on_both_sides() -> None:
    """A fifth of it stands in several topics; each passage is read once, so held-out topics are new to the model."""
    assert shared_runs(*split_documents(read_documents(CorpusConfig(source="pydoc")).texts, 0.1)) < 0.02
