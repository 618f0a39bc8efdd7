"""The presets: llama-tiny's stages stay where they are, and the checkpoint that comes with the package is whole."""

import importlib.util
import json
import math
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fortifai_ray.engines.pretrained import causal_config, load_network, load_tokenizer, read_json
from fortifai_ray.engines.soundness import check_checkpoint
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import prepare_corpus, split_documents
from fortifai_ray.families.language.models import create_model, model_identity, preset_shape
from fortifai_ray.families.language.scoring import perplexity
from fortifai_ray.families.language.texts import read_documents
from fortifai_ray.process.probes import probe
from fortifai_ray.storage.store import StageStore, canonical_hash, file_sha256
from fortifai_ray.study.study import make_study

PROJECT = Path(__file__).parents[3]
DOCS = ModelConfig(preset="llama-docs")
TINY_IDENTITY = "c4599ef09d05f5808c525e7bd31b617e"
STDLIB = Path(sysconfig.get_path("stdlib"))
PYDOC = CorpusConfig(source="pydoc")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain", PROJECT / "scripts" / "pretrain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_architecture_alone_keeps_its_stages() -> None:
    """What determines the starting models of all the studies that begin with random weights."""
    assert canonical_hash(model_identity(ModelConfig(preset="llama-tiny"))) == TINY_IDENTITY
    assert ModelConfig(preset="llama-tiny").folder is None


def test_the_checkpoint_is_small_whole_and_of_the_sizes_that_its_preset_says() -> None:
    """At most 8 MB in the package; the tokenizer's tokens are the model's, and its end of text ends what it writes."""
    folder = DOCS.folder
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    config = load_network(folder, "auto").config
    assert {key: getattr(config, key) for key in preset_shape(DOCS)} == preset_shape(DOCS)
    tokenizer = load_tokenizer(folder)
    assert (len(tokenizer), config.vocab_size) == (DOCS.vocab_size, DOCS.vocab_size)
    assert tokenizer.eos_token_id == config.eos_token_id
    text = "Return the name of the file.\n\n   It is a string; see “open()”."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_the_driver_takes_from_it_is_what_transformers_would_save(tmp_path: Path) -> None:
    """Byte for byte, in a process that imports neither transformers nor PyTorch for it."""
    code = (
        "import sys; from pathlib import Path; from fortifai_ray.families.language import config, corpus, models; "
        "from fortifai_ray.storage.store import StageStore; model = config.ModelConfig(preset='llama-docs'); "
        "folder = Path(sys.argv[1]); text = config.CorpusConfig(source='pydoc', train_tokens=8192); "
        "made = corpus.prepare_corpus(text, model, StageStore(folder)); models.write_config(model, made, folder); "
        "print(made.tokenizer_path, {'torch', 'transformers'} & sys.modules.keys())"
    )
    answer = probe(code, 120.0, str(tmp_path))
    folder = DOCS.folder
    assert folder is not None
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "saved")
    config = causal_config(folder)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "saved")
    made = Path(answer.text.removesuffix(" set()"))
    assert {file.name for file in made.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    for file in (*made.iterdir(), tmp_path / "config.json"):
        saved = (tmp_path / "saved" / file.name).read_bytes()  # which says whether it was offline
        assert file.read_bytes() == saved.replace(b'"local_files_only": true', b'"local_files_only": false'), file


def test_it_predicts_documentation_that_it_has_not_read(tmp_path: Path) -> None:
    """Untrained, before a chain begins: far below llama-tiny after generation 0 (524), and it is saved unchanged."""
    store = StageStore(tmp_path)
    corpus = prepare_corpus(PYDOC, DOCS, store)
    assert DOCS.folder is not None
    check_checkpoint(DOCS.folder)  # a study does not: it is of the package
    create_model(DOCS, corpus, 0, tmp_path / "model")
    assert file_sha256(tmp_path / "model" / "model.safetensors") == file_sha256(DOCS.folder / "model.safetensors")
    blocks = corpus.blocks(corpus.held_out, 128)[:48]
    assert perplexity(tmp_path / "model", blocks, batch_size=16, threads=1).perplexity < 100


@pytest.mark.parametrize("size", [{"vocab_size": 512}, {"hidden_size": 64}, {"layers": 2}])
def test_its_sizes_are_fixed(size: dict[str, int]) -> None:
    (name,) = size
    with pytest.raises(ValueError, match=f"{name}: llama-docs is pretrained with .*: leave it out"):
        ModelConfig(preset="llama-docs", **size)
    assert ModelConfig(**DOCS.model_dump()) == DOCS, "a resolved study, with all defaults, is read again"


def test_the_quickstart_starts_from_it() -> None:
    """Three seeds of each loss, so that the ratio has an interval; one corpus and one starting model for all."""
    content = yaml.safe_load((PROJECT / "sweeps" / "quickstart.yaml").read_text(encoding="utf-8"))
    study = make_study(content, "quickstart.yaml")
    recipes = [chain.recipe for chain in study.chains]
    assert len(recipes) == 2 * 3
    assert {recipe.family.model for recipe in recipes} == {DOCS}


def test_its_text_is_prose_and_none_of_it_is_the_quickstarts(script: ModuleType) -> None:
    """On parts of CPython whose docstrings are like its language reference."""
    text = ""
    for part in ("email", "json", "importlib"):
        paragraphs = [p for file in script.documents(STDLIB / part) for p in file]
        assert len(paragraphs) >= 10
        assert not [p for p in paragraphs if ">>>" in p]
        text += "\n".join(paragraphs)
    _, held_out = split_documents(read_documents(PYDOC).texts, PYDOC.held_out)
    assert not words(text) & words("\n".join(held_out))
    assert "pydoc_data" in script._LEFT_OUT


def test_its_recipe_makes_such_a_checkpoint(script: ModuleType, tmp_path: Path) -> None:
    """The study beside it, on a short text: what comes out is a model and its tokenizer, in the preset's files."""
    assert DOCS.folder == script.PRESET
    made = tmp_path / "made"
    paragraphs = [p for part in ("email", "asyncio") for file in script.documents(STDLIB / part) for p in file]
    text = tmp_path / "docstrings.jsonl"
    text.write_text("\n".join(json.dumps({"text": paragraph}) for paragraph in paragraphs))
    assert math.isfinite(script.pretrain(script.PRESET / "pretrain.yaml", made, tmp_path, text))
    assert {file.name for file in made.iterdir()} == {f.name for f in DOCS.folder.iterdir()} - {
        "README.md",
        "pretrain.yaml",
    }
    assert read_json(made / "config.json") == read_json(DOCS.folder / "config.json")


def words(text: str, run: int = 8) -> set[tuple[str, ...]]:
    """Runs of words in a text."""
    each = text.lower().split()
    return set(zip(*(each[start:] for start in range(run)), strict=False))
