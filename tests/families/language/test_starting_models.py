"""A pretrained starting model: what a dry run finds of it, what is saved of it, and that nothing of it is run."""

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engines.architectures import make_architecture
from engines.gguf_writing import make_llama, make_tokenizer, write_gguf
from safetensors.torch import load_file, save_file

from fortifai_ray.engines.checkpoints import architecture, load_causal_lm
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.engines.pretrained import end_of_text_ids, local_folder
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import END_OF_TEXT, Corpus, prepare_corpus
from fortifai_ray.families.language.models import (
    check_model,
    create_model,
    describe_ends,
    describe_files,
    model_identity,
    write_config,
)
from fortifai_ray.storage.store import StageStore

VOCABULARY = 512


def save_llama(folder: Path, corpus: Corpus, **settings: Any) -> Path:
    """A small Llama with the corpus' tokenizer and end of text."""
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), corpus.end_of_text)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(**({"vocab_size": VOCABULARY} | sizes | ids | settings))
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copytree(corpus.tokenizer_path, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def llama(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama", corpus)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_architecture(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


def beside(llama: Path, folder: Path, **files: Any) -> Path:
    """A copy of the model with these JSON files (a double underscore for the dot)."""
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def edited(folder: Path, **settings: Any) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text()) | settings


# Vocabularies


@pytest.mark.parametrize("vocab_size", [VOCABULARY, VOCABULARY + 128])
def test_a_vocabulary_may_be_padded(corpus: Corpus, tmp_path: Path, vocab_size: int) -> None:
    """The embedding may have rows that no token has."""
    model = ModelConfig(path=str(save_llama(tmp_path, corpus, vocab_size=vocab_size)))
    check_model(model, corpus)
    assert describe_ends(model, corpus) == ()


@pytest.mark.parametrize("vocab_size", [300, VOCABULARY - 1])
def test_tokens_beyond_the_model_are_refused(corpus: Corpus, tmp_path: Path, vocab_size: int) -> None:
    """Both sizes, and what would be right."""
    folder = save_llama(tmp_path, corpus, vocab_size=vocab_size)
    with pytest.raises(UserError, match=rf"the model has {vocab_size} tokens \(0 to {vocab_size - 1}\)") as error:
        check_model(ModelConfig(path=str(folder)), corpus)
    assert f"the tokenizer in {folder} has {VOCABULARY}" in str(error.value)
    assert "resize_token_embeddings" in str(error.value)


def _with_added(llama: Path, folder: Path, **added: str) -> Path:
    shutil.copytree(llama, folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens(added)
    words.save_pretrained(folder)
    return folder


def test_an_end_of_text_beyond_the_model_is_refused(corpus: Corpus, llama: Path, tmp_path: Path) -> None:
    """Added to the tokenizer, and not to the model; padding that was added is written nowhere."""
    folder = _with_added(llama, tmp_path / "model", eos_token="<|end|>")
    model, store = ModelConfig(path=str(folder)), StageStore(tmp_path / "store")
    with pytest.raises(UserError, match=f"its end of text is token {VOCABULARY}"):
        check_model(model, prepare_corpus(CorpusConfig(source="pydoc"), model, store))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<nope>"}
    model = ModelConfig(path=str(beside(llama, tmp_path / "named", tokenizer_config=named)))
    with pytest.raises(UserError, match=f"eos_token: <nope>, is not in its tokenizer.json and is token {VOCABULARY}"):
        check_model(model, prepare_corpus(CorpusConfig(source="pydoc"), model, store))
    padded = ModelConfig(path=str(_with_added(llama, tmp_path / "padded", pad_token="<|pad|>")))
    check_model(padded, prepare_corpus(CorpusConfig(source="pydoc"), padded, store))


def test_a_model_that_ends_elsewhere_is_said(corpus: Corpus, llama: Path, tmp_path: Path) -> None:
    """An eos_token_id that is none of its tokens is refused; none at all, or another than the tokenizer's, is told."""
    for given, said in ((VOCABULARY, "none of the model's 512 tokens"), ([0, 9999], "9999 is none")):
        folder = beside(llama, tmp_path / f"beyond {said}", config=edited(llama, eos_token_id=given))
        (folder / "generation_config.json").unlink(missing_ok=True)
        with pytest.raises(UserError, match=said):
            check_model(ModelConfig(path=str(folder)), corpus)
    for number, (given, said) in enumerate(((-1, "no eos_token_id"), (None, "no eos_token_id"), (7, "eos_token_id 7"))):
        folder = beside(llama, tmp_path / str(number), config=edited(llama, eos_token_id=given))
        (folder / "generation_config.json").unlink()
        model = ModelConfig(path=str(folder))
        check_model(model, corpus)
        (line,) = describe_ends(model, corpus)
        assert said in line
        assert f"eos_token_id: {corpus.end_of_text}" in line


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("generation_config", "", ("generation_config.json is empty", "from config.json")),
        ("generation_config", "{", ("generation_config.json cannot be read", "from config.json")),
        ("generation_config", "[]", ("generation_config.json is no JSON mapping", "from config.json")),
        ("tokenizer_config", {"tokenizer_class": "Zzz", "eos_token": END_OF_TEXT}, ("tokenizer_class: Zzz", "alone")),
        ("tokenizer_config", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}, ()),
        ("pad", None, ("has 512 tokens and no place for '[PAD]'", "none of them")),
    ],
)
def test_what_is_left_of_a_models_files_is_said(
    llama: Path, tmp_path: Path, file: str, content: Any, said: tuple[str, ...]
) -> None:
    """One warning in the dry run for what is not read, or would not fit: none of it stops a sweep."""
    if file == "pad":
        folder = _with_added(llama, tmp_path / "model", pad_token="[PAD]")
    else:
        folder = beside(llama, tmp_path / "model", **{file: content})
    model = ModelConfig(path=str(folder))
    corpus = prepare_corpus(CorpusConfig(source="pydoc"), model, StageStore(tmp_path / "store"))
    check_model(model, corpus)
    lines = describe_files(model, corpus)
    assert len(lines) == bool(said)
    assert all(line.startswith("warning: ") and part in line for line in lines for part in said)


# Settings of generation


OWN_SETTINGS: list[Any] = [
    {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    {"do_sample": False, "top_k": 20, "typical_p": 0.2, "min_p": 0.1},
    {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_length": 20, "suppress_tokens": list(range(1, 400))},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 9.0, "length_penalty": -5.0, "early_stopping": "no"},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 6, "begin_suppress_tokens": [7], "bad_words_ids": [[1]]},
    {"max_new_tokens": 0, "max_length": 1, "num_return_sequences": 3, "penalty_alpha": 0.6},
    {"pad_token_id": -1, "bos_token_id": -1},
    {"eos_token_id": "</s>", "cache_implementation": "static", "watermarking_config": {"bias": "much"}},
    {"custom_generate": "somebody/code", "prompt_lookup_num_tokens": 3, "guidance_scale": 3.0},
    "{not JSON",
    "[]",
    "",
]  # fmt: skip


def beams(folder: Path) -> list[list[int]]:
    engine = HuggingFaceEngine(EngineConfig(kind="huggingface"))
    engine.start(folder)
    engine.load(folder)
    return engine.generate([[5, 6, 7], [8, 9]], [0, 1], DecodingConfig(num_beams=3, max_new_tokens=6))


@pytest.mark.parametrize("settings", OWN_SETTINGS)
def test_a_models_settings_of_generation_are_not_ours(
    corpus: Corpus, llama: Path, tmp_path: Path, settings: Any
) -> None:
    """They fail nothing and change nothing: the same beams and stage as of a model without; its own tokens stay."""
    given = beside(llama, tmp_path / "given", generation_config=settings)
    model = ModelConfig(path=str(given))
    check_model(model, corpus)
    create_model(model, corpus, 0, tmp_path / "stage")
    kept = json.loads((tmp_path / "stage" / "generation_config.json").read_text())
    assert kept.keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    assert end_of_text_ids(tmp_path / "stage") == [corpus.end_of_text]
    assert beams(given) == beams(tmp_path / "stage") == beams(llama)
    scored = load_causal_lm(given, "auto").generation_config  # what lm-evaluation-harness generates with
    assert scored.to_diff_dict() == load_causal_lm(llama, "auto").generation_config.to_diff_dict()


def test_settings_in_config_json_are_not_ours_either(corpus: Corpus, llama: Path, tmp_path: Path) -> None:
    """Older models, GPT-2 among them, have them there."""
    task = {"text-generation": {"do_sample": True, "max_length": 50}}
    old = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "temperature": 0.5, "task_specific_params": task}
    given = beside(llama, tmp_path / "given", config=edited(llama, **old))
    (given / "generation_config.json").unlink()
    create_model(ModelConfig(path=str(given)), corpus, 0, tmp_path / "stage")
    assert beams(given) == beams(tmp_path / "stage") == beams(llama)


# What is saved


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_starting_model_is_the_checkpoint(
    corpus: Corpus, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Bit for bit; and an engine that starts from its configuration alone has the architecture of its weights."""
    given = request.getfixturevalue(name)
    model = ModelConfig(path=str(given))
    create_model(model, corpus, 0, tmp_path / "stage")
    write_config(model, corpus, tmp_path / "config")
    assert architecture(tmp_path / "config") == architecture(tmp_path / "stage")
    before, after = (load_file(folder / "model.safetensors") for folder in (given, tmp_path / "stage"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_body_without_a_head_becomes_a_causal_lm(corpus: Corpus, gpt2: Path, tmp_path: Path) -> None:
    """GPT-2 on the hub is one: names without a prefix, and the head tied."""
    body = transformers.GPT2Model.from_pretrained(gpt2)
    body.save_pretrained(tmp_path / "body")
    create_model(ModelConfig(path=str(tmp_path / "body")), corpus, 0, tmp_path / "stage")
    write_config(ModelConfig(path=str(tmp_path / "body")), corpus, tmp_path / "config")
    assert json.loads((tmp_path / "config" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert architecture(tmp_path / "config") == architecture(gpt2)
    tokens = torch.tensor([[1, 2, 3]])
    first, second = (load_causal_lm(folder, torch.float32)(tokens).logits for folder in (gpt2, tmp_path / "stage"))
    assert torch.equal(first, second)


def test_a_hubs_model_is_checked_where_it_lies(
    corpus: Corpus, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine has of it: all, or the configuration alone; nothing is asked of a hub that is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def cached(name: str, change: Callable[[Path], Any]) -> ModelConfig:
        root = tmp_path / f"models--somebody--{name}"
        folder = root / "snapshots" / "0123456789012345678901234567890123456789"
        shutil.copytree(llama, folder)
        change(folder)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(folder.name)
        return ModelConfig(hub=f"somebody/{name}")

    def diverge(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    whole = cached("whole", lambda folder: None)
    check_model(whole, corpus)
    check_model(ModelConfig(hub="somebody/absent"), corpus)
    create_model(whole, corpus, 0, tmp_path / "stage")
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "stage"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    short = edited(llama, num_hidden_layers=2)
    for name, change, said in (
        ("lacking", lambda folder: (folder / "config.json").write_text(json.dumps(short)), "lack the tensors"),
        ("bert", lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "both sides"),
        ("unfetched", _quantised, "gptq"),
        ("diverged", diverge, "not finite"),
    ):
        model = cached(name, change)
        with pytest.raises(UserError, match=said):
            check_model(model, corpus)
        with pytest.raises(UserError, match=said):
            create_model(model, corpus, 0, tmp_path / "never")
    local_folder.cache_clear()


def _quantised(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}')


_HUB = """
import sys
from pathlib import Path
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import prepare_corpus
from fortifai_ray.families.language.models import check_model, create_model
from fortifai_ray.errors import UserError
from fortifai_ray.storage.store import StageStore

root = Path(sys.argv[1])
for name in ("somebody/whole", "somebody/headless", "somebody/classifier", "somebody/absent"):
    model = ModelConfig(hub=name)
    try:
        corpus = prepare_corpus(CorpusConfig(source="pydoc"), model, StageStore(root / "store"))
        check_model(model, corpus)
        print(f"{name}: passed")
    except UserError as error:
        print(f"{name}: {error}")
print("checked", flush=True)
assert not list(root.glob("**/blobs/*.incomplete"))
assert not [file for file in (root / "home").glob("**/model.safetensors")]
create_model(ModelConfig(hub="somebody/whole"), corpus, 0, root / "stage")
"""


class _Hub(SimpleHTTPRequestHandler):
    """As much of a hub as its client asks for: a repository's files, by range, and the commit of its main branch."""

    protocol_version = "HTTP/1.1"
    commit = "0123456789012345678901234567890123456789"
    root: Path

    def do_HEAD(self) -> None:
        self._answer(content=False)

    def do_GET(self) -> None:
        self._answer(content=True)

    def _answer(self, *, content: bool) -> None:
        parts = self.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            about = {"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": []}
            body = json.dumps([] if "tree" in parts else about).encode()
            found = (self.root / parts[3]).is_dir()
        else:
            file = self.root / parts[1] / "/".join(parts[4:])
            found = parts[2:3] == ["resolve"] and file.is_file()
            body = file.read_bytes() if found else b""
        status, whole = (200 if found else 404), len(body)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found and asked:
            body, status = body[int(asked[1]) : int(asked[2] or whole) + 1], 206
        self.send_response(status)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound" if (self.root / parts[1]).is_dir() else "RepoNotFound")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha256(body if not asked else self.path.encode()).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if content:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None: ...


def test_a_hubs_model_is_checked_before_it_is_fetched(corpus: Corpus, llama: Path, tmp_path: Path) -> None:
    """Its configuration and the heads of its files say what is wrong with it; only a sound one is ever downloaded."""
    hub = tmp_path / "hub"
    shutil.copytree(llama, hub / "whole")
    shutil.copytree(llama, hub / "headless")
    weights = load_file(llama / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, hub / "headless" / "model.safetensors", metadata={"format": "pt"})
    classifier = edited(llama, architectures=["LlamaForSequenceClassification"])
    beside(llama, hub / "classifier", config=classifier)
    (tmp_path / "run.py").write_text(_HUB)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": hub})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        done = subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
            capture_output=True, text=True, env=environment, timeout=300, check=False,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    whole, headless, classified, absent, checked = done.stdout.splitlines()
    assert whole == "somebody/whole: passed"
    assert "lack the tensor lm_head.weight" in headless
    assert "LlamaForSequenceClassification, which is no causal language model" in classified
    assert absent.startswith("somebody/absent: family.model: no tokenizer could be loaded from somebody/absent: ")
    assert checked == "checked"
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "stage"))
    assert all(torch.equal(before[key], after[key]) for key in before)


# Code that comes with a checkpoint


_STUDY = """
name: planted
family: {{kind: language, model: {{path: {model}}}}}
corpus: {{source: pydoc, train_tokens: 2048}}
regime: {{kind: replace}}
training: {{epochs: 1, batch_size: 4, block_size: 32}}
generations: 2
collapse: {{metric: perplexity, threshold: 2.0, direction: above}}
"""
_RUN = """
import sys
from pathlib import Path
from fortifai_ray import cli
from fortifai_ray.errors import UserError

assert sys.stdin.isatty()
root = Path(sys.argv[1])


def main(*arguments):
    try:
        cli.app(list(arguments), standalone_mode=False)
    except UserError as error:
        print("refused:", error)


for name in ("own_type", "known_type"):
    main("sweep", str(root / f"{name}.yaml"), "--dry-run", "--storage", str(root / "runs"))
    main("evaluate", str(root / name), "--tasks", f"kr_test={root / 'questions.json'}")

from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig
from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine
from fortifai_ray.families.language.config import ModelConfig
from fortifai_ray.families.language.models import create_model, write_config

known = root / "known_type"
create_model(ModelConfig(path=str(known)), None, 0, root / "stage")
write_config(ModelConfig(path=str(known)), None, root / "config")
engine = HuggingFaceEngine(EngineConfig(kind="huggingface"))
engine.start(known)
engine.load(known)
engine.generate([[1, 2]], [0], DecodingConfig(num_beams=2, max_new_tokens=2))
load_causal_lm(known, "auto")
print("done")
"""


def test_code_that_comes_with_a_checkpoint_is_never_run(corpus: Corpus, llama: Path, tmp_path: Path) -> None:
    """In configuration, tokenizer, model, generation and pickles, at a terminal that answers yes to whatever is asked;
    an architecture that transformers has is loaded as its own, and another is refused."""
    marker = tmp_path / "THIS_CODE_RAN"
    own = {
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
        "AutoTokenizer": ["mine.Words", "mine.Words"],
    }
    for name, kind in (("own_type", "mine"), ("known_type", "llama")):
        folder = beside(llama, tmp_path / name, config=edited(llama, model_type=kind, auto_map=own))
        words = json.loads((folder / "tokenizer_config.json").read_text()) | {
            "auto_map": {"AutoTokenizer": own["AutoTokenizer"]}
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        (folder / "custom_generate").mkdir()
        for file in ("mine.py", "custom_generate/generate.py", "__init__.py", "setup.py", "conftest.py"):
            (folder / file).write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit('ran')\n")
        for file in ("pytorch_model.bin", "training_args.bin", "evil.pkl"):
            (folder / file).write_bytes(f"cbuiltins\nopen\n(V{marker}\nVw\ntR.".encode())
        (tmp_path / f"{name}.yaml").write_text(_STUDY.format(model=folder))
    questions = [{"context": "The list holds", "sentence_true": "cats.", "sentence_false": "dogs."}]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "run.py").write_text(_RUN)
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 50)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)], stdin=theirs, capture_output=True, text=True,
        env=environment, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    said = done.stdout + done.stderr
    assert done.stdout.endswith("done\n"), said
    assert not marker.exists()
    assert "[y/N]" not in said
    refused = [line for line in said.splitlines() if line.startswith("refused:")]
    assert len(refused) == 2, said
    assert all("model_type: mine" in line and "never run" in line for line in refused)
    assert "chains of 2 generations" in said
    for folder in (tmp_path / "stage", tmp_path / "config"):
        assert "auto_map" not in (folder / "config.json").read_text()
        assert not list(folder.glob("*.py"))


# GGUF


def test_a_gguf_file_is_a_starting_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked, tokenised, hashed and saved as the folder that it is made into; messages name the file itself."""
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    network, store = make_llama(), StageStore(tmp_path / "store")
    model = ModelConfig(path=str(write_gguf(tmp_path / "model.gguf", network, make_tokenizer())))
    folder = ModelConfig(path=str(shutil.copytree(str(model.folder), tmp_path / "folder")))
    text = prepare_corpus(CorpusConfig(source="pydoc"), model, store)
    check_model(model, text)
    assert model_identity(model) == model_identity(folder)
    assert prepare_corpus(CorpusConfig(source="pydoc"), folder, store).stage.hash == text.stage.hash
    create_model(model, text, 0, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == {name for name, _ in network.named_parameters()}
    assert all(torch.equal(saved[name], parameter) for name, parameter in network.named_parameters())
    small = ModelConfig(path=str(write_gguf(tmp_path / "small.gguf", make_llama(vocab_size=200))))
    with pytest.raises(UserError, match="the model has 200 tokens") as error:
        check_model(small, text)
    assert str(tmp_path / "small.gguf") in str(error.value)
    assert str(tmp_path / "cache") not in str(error.value)
    with pytest.raises(
        UserError, match=r"^family\.model: .*small\.gguf holds no tokenizer.*give a GGUF that has"
    ) as error:
        prepare_corpus(CorpusConfig(source="pydoc"), small, store)
    assert str(tmp_path / "cache") not in str(error.value)
    with pytest.raises(ValueError, match=r"there is no file .*none\.gguf"):
        ModelConfig(path=str(tmp_path / "none.gguf"))
