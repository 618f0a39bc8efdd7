"""What is exported loads with plain transformers and datasets, says how it came to be, and replaces nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from fortifai_ray.cli import app
from fortifai_ray.errors import UserError
from fortifai_ray.export.export import export
from fortifai_ray.export.files import generation_settings, write_checkpoint
from fortifai_ray.export.target import MARK
from fortifai_ray.tracking.overview import _pools

from .conftest import TEXTS, swept
from .hub import Hub, running

LOAD = """
import json, sys
from pathlib import Path
import datasets, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
model = AutoModelForCausalLM.from_pretrained(folder / "model")
ids = tokenizer("The list", return_tensors="pt")
torch.manual_seed(0)
written = model.generate(**ids)
rows = datasets.load_dataset(str(folder / "corpus"), split="train")
assert "fortifai_ray" not in sys.modules
print(json.dumps({
    "logits": model(**ids).logits[0, -1, :5].tolist(), "new": written.shape[1] - ids["input_ids"].shape[1],
    "again": [tokenizer.decode(one) for one in rows["generated_ids"]], "texts": list(rows["text"]),
    "columns": rows.column_names, "weights": list(rows["weights_version"]), "vocabulary": len(tokenizer),
}))
"""


def plain(folder: Path, cache: Path) -> dict[str, Any]:
    """What a process that does not know this package finds in an export."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def header(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])


def row(study: Path, generation: int, kind: str = "tce") -> dict[str, Any]:
    table = pl.read_parquet(study / "results" / "generations.parquet")
    return table.filter((pl.col("loss.kind") == kind) & (pl.col("generation") == generation)).row(0, named=True)


def test_both_load_without_this_package(texts: Path, tmp_path: Path) -> None:
    """The weights are the stage's, the texts are what the tokens say, and the cards say how they came to be."""
    places = export(str(texts), str(tmp_path / "out"), cell="tce gamma=0.3", what=("model", "corpus"))
    assert places == [str(tmp_path / "out" / "model"), str(tmp_path / "out" / "corpus")]
    found, last, first = plain(tmp_path / "out", tmp_path), row(texts, 1), row(texts, 0)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(texts.parent / "stages" / last["stage"])
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")("The list", return_tensors="pt")
    with torch.inference_mode():
        assert found["logits"] == pytest.approx(model(**tokens).logits[0, -1, :5].tolist(), rel=1e-5, abs=1e-6)
    assert 1 <= found["new"] <= 24, "the chain's own decoding"
    corpus = pl.read_parquet(texts.parent / "stages" / first["synthetic_stage"] / "corpus")
    assert found["columns"] == ["row", "prompt", "text", "seed", "prompt_ids", "generated_ids", "weights_version"]
    assert found["texts"] == found["again"]
    assert found["weights"] == corpus["weights_version"].to_list() == [first["stage"]] * corpus.height

    card, about = tmp_path / "out" / "model" / "README.md", header(tmp_path / "out" / "model" / "README.md")
    text = card.read_text(encoding="utf-8")
    (human,) = _pools(texts.parent / "stages" / first["stage"] / "manifest.json")  # as MLflow names it
    assert about["library_name"] == "transformers"
    assert "synthetic" in about["tags"]
    for said in (
        *("trained on synthetic data: 75%", last["chain_id"], "γ = 0.3", "mixed, synthetic ratio 0.75", last["stage"]),
        *(
            "128 human and 384 synthetic tokens",
            f"source pydoc, digest {human}, SHA-256 of its text ",
            f"| {last['perplexity']:.4g} |",
        ),
        *("confirmed by 1 further generation: **survived**", "## What the study found", "fortifai_ray 0."),
    ):
        assert said in text, said
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert (recipe["loss"], recipe["seed"]) == ({"kind": "tce", "gamma": 0.3}, 0)
    about = header(tmp_path / "out" / "corpus" / "README.md")
    assert about["dataset_info"]["splits"][0]["num_examples"] == corpus.height
    said = (tmp_path / "out" / "corpus" / "README.md").read_text(encoding="utf-8")
    assert "written by generation 0" in said
    assert "temperature 0.8" in said


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    """A LoRA chain's checkpoint is a whole model: the adapter's product is in the weights."""
    content = TEXTS | {"name": "lora", "vary": {}, "generations": 1}
    content["training"] = {**TEXTS["training"], "lora": {"rank": 2, "alpha": 4}, "learning_rate": 0.05}
    study = swept(tmp_path / "runs", **content)
    export(str(study), str(tmp_path / "out"))

    import torch
    from safetensors.torch import load_file

    from fortifai_ray.engines.checkpoints import load_causal_lm, whole_model

    stage = study.parent / "stages" / row(study, 0, "cross_entropy")["stage"]
    merged, base = load_causal_lm(stage, "auto").state_dict(), load_file(whole_model(stage) / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], merged[name]) for name in written)
    assert any(not torch.equal(written[name], base[name]) for name in written)
    assert "LoRA, merged" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    with pytest.raises(UserError, match="holds another export, the model of generation 0"):
        export(str(study), str(tmp_path / "out"), adapter=True)

    # The same as PEFT has it: its own loader finds the adapter and the model, and computes what the merged one does.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "adapter"
    export(str(study), str(folder), adapter=True)
    ids = AutoTokenizer.from_pretrained(folder)("The list", return_tensors="pt")
    network = AutoModelForCausalLM.from_pretrained(folder / "base_model")
    plain_logits = network(**ids).logits
    adapted = PeftModel.from_pretrained(network, str(folder))
    assert adapted.peft_config["default"].task_type == "CAUSAL_LM"
    logits = adapted(**ids).logits
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**ids).logits
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert (logits - plain_logits).abs().max() > 1e-3
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert header(folder / "README.md")["library_name"] == "peft"
    assert f'from_pretrained("{folder.name}/base_model")' in card


def test_images_go_as_they_are(images: Path, tmp_path: Path) -> None:
    """Weights and the network's description; samples as Parquet that datasets reads."""
    export(str(images), str(tmp_path / "out"), what=("model", "corpus"))
    table = row(images, 0, "cross_entropy")
    samples = np.load(images.parent / "stages" / table["synthetic_stage"] / "samples.npy")
    written = pl.read_parquet(tmp_path / "out" / "corpus" / "data")
    assert (np.array(written["sample"].to_list()).reshape(samples.shape) == samples).all()
    assert {path.name for path in (tmp_path / "out" / "model").iterdir()} == {
        *("README.md", "model.safetensors", "network.json", MARK)
    }


@pytest.mark.parametrize(
    "name", ["STUDY/ID", "STUDY/BEGINNING", "STORAGE:ID", "STORAGE:BEGINNING", "STORAGE:STUDY/ID", "STUDY/"]
)
def test_a_chain_by_its_names(texts: Path, tmp_path: Path, name: str) -> None:
    """By its id, by the beginning of it, by its study in a storage; and by cell and seed alone."""
    chain = row(texts, 0)["chain_id"]
    storage, _, short = name.rpartition(":")
    for word, meant in {"STUDY": "texts" if storage else str(texts), "ID": chain, "BEGINNING": chain[:6]}.items():
        short = short.replace(word, meant)
    extra: dict[str, Any] = {"cell": "gamma=0.3", "seed": 0} if name == "STUDY/" else {}
    export(short, str(tmp_path / "out"), storage=str(texts.parent) if storage else "runs", **extra)
    mark = json.loads((tmp_path / "out" / MARK).read_text())
    assert (mark["what"], mark["chain_id"], mark["generation"]) == ("model", chain, 1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"2 chains answer to this: .*\(cross entropy, seed 0\)"),
        ({"chain": "STUDY/ffffffffff"}, "there is no chain ffffffffff"),
        ({"chain": "txts"}, "no study or chain of this name.*did you mean texts"),
        ({"chain": "abcdef"}, "no study or chain of this name"),
        ({"cell": "TCE γ=0.4"}, "there is no cell 'TCE γ=0.4'; did you mean TCE γ=0.3"),
        ({"cell": "tse"}, "there is no cell 'tse'"),
        ({"cell": "gamma=0.4"}, r"no chain has loss.gamma=0.4 \(there is null, 0.3\)"),
        ({"cell": "gama=0.3"}, "no chain has a key gama; did you mean gamma"),
        ({"cell": "gamma=0.3", "seed": 7}, r"there is no seed 7 \(there is 0\)"),
        ({"cell": "gamma=0.3", "generation": "2"}, "there is no generation 2; those with one: 0, 1"),
        ({"cell": "gamma=0.3", "generation": "-1"}, "--generation -1: give its number"),
        ({"cell": "gamma=0.3", "generation": "first"}, "--generation first: give its number"),
        ({"cell": "gamma=0.3", "to": ""}, "--to: names nothing"),
        ({"cell": "gamma=0.3", "to": "s3://bucket/x"}, "an address is no place"),
        ({"cell": "gamma=0.3", "to": "FILE"}, "is a file; give a folder"),
        ({"cell": "gamma=0.3", "to": "FILE/inside"}, "cannot be used"),
        ({"cell": "gamma=0.3", "to": "hub:a/b/c"}, "is no name of a repository"),
        ({"cell": "gamma=0.3", "to": "hub:"}, "is no name of a repository"),
    ],
)
def test_a_mistake_is_one_line(texts: Path, tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    """Before anything is written."""
    (tmp_path / "file").write_text("x")
    keys = {"chain": str(texts), "to": str(tmp_path / "out"), "storage": str(texts.parent)} | asked
    chain = keys.pop("chain").replace("STUDY", str(texts))
    with pytest.raises(UserError, match=message) as error:
        export(chain, keys.pop("to").replace("FILE", str(tmp_path / "file")), **keys)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_corpus_alone_and_both_contradict_each_other(texts: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["export", str(texts), "--to", str(tmp_path / "out"), "--corpus", "--both"])
    assert isinstance(found.exception, UserError)
    assert str(found.exception).startswith("--corpus and --both: contradict each other")
    with pytest.raises(UserError, match=r"--adapter: .* is a whole model, no adapter; leave the option out"):
        export(str(texts), str(tmp_path / "out"), cell="gamma=0.3", adapter=True)
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_replaced(texts: Path, tmp_path: Path) -> None:
    """An export of the same thing is renewed; anything else in the folder is refused, and stays."""
    chain, out = f"{texts}/{row(texts, 0)['chain_id']}", tmp_path / "out"
    out.mkdir()
    export(chain, str(out), generation="0")
    (out / "README.md").write_text("edited")
    export(chain, str(out), generation="0")
    assert "edited" not in (out / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="another export, the model of generation 0"):
        export(chain, str(out), generation="1")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        export(chain, str(out), generation="0")
    (out / MARK).unlink()
    with pytest.raises(UserError, match="is not empty"):
        export(chain, str(out), generation="0")
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is left beside it"


@pytest.mark.parametrize("lost", ["gone", "damaged", "tokenizer"])
def test_a_stage_that_is_lost_is_one_line(
    texts: Path, tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Removed by gc, or altered on the disk: nothing is exported."""
    runs = shutil.copytree(texts.parent, tmp_path / "runs")
    stage = runs / "stages" / row(texts, 1)["stage"]
    if lost == "gone":
        shutil.rmtree(stage)
    elif lost == "damaged":
        (stage / "model.safetensors").write_bytes(b"\0" * 100)
    else:
        corpus = json.loads((stage / "manifest.json").read_text())["inputs"]["corpus"]
        (runs / "stages" / corpus / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"is gone or damaged.*sweep the study again"):
        export(str(runs / "texts"), str(tmp_path / "out"), cell="gamma=0.3")
    assert not (tmp_path / "out").exists()
    assert not caplog.records


@pytest.mark.parametrize("stages", [[None, None], ["c0" * 16, "c0" * 16]])
def test_a_family_without_checkpoints(stages: list[str | None], tmp_path: Path) -> None:
    """One line, from the command, with exit code 2; also where all generations are one stage, a cohort's table."""
    from fortifai_ray import open_study
    from fortifai_ray.results.schema import write_table

    study = tmp_path / "runs" / "bell"
    study.mkdir(parents=True)
    (study / "study.yaml").write_text("name: bell\nfamily: {kind: gaussian}\ngenerations: 1\ncollapse: []\n")
    known = {"chain_id": ["ab12cd34"] * 2, "generation": [0, 1], "seed": [0] * 2, "family.kind": ["gaussian"] * 2}
    write_table(study, "generations", pl.DataFrame({**known, "stage": stages, "synthetic_stage": [None] * 2}))
    chain = open_study(study).chain()
    assert (dict(chain.checkpoints), dict(chain.corpora)) == ({}, {})
    command = [sys.executable, "-m", "fortifai_ray", "export", str(study), "--to", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("fortifai: bell, ")
    assert "no checkpoint is stored for it: what a chain of gaussian has measured" in done.stderr
    (tmp_path / "weights.npy").touch()  # of somebody's own family
    with pytest.raises(UserError, match=r"holds no safetensors, which others could load: it has runs, weights\.npy"):
        write_checkpoint(tmp_path, None, {}, tmp_path / "out")


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False}),
        ({"num_beams": 4, "max_new_tokens": 5}, {"do_sample": False, "num_beams": 4, "max_new_tokens": 5}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0}),
        ({"min_new_tokens": 3}, {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_new_tokens": 3}),
    ],
)  # fmt: skip
def test_decoding_in_the_words_of_transformers(decoding: dict[str, Any], expected: dict[str, Any]) -> None:
    """Settings that draw nothing are left out, of which transformers warns; what is left is valid there."""
    from transformers import GenerationConfig

    assert generation_settings(decoding) == expected
    GenerationConfig(**expected).validate(strict=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, a token for it, and a cache of the test's own."""
    from huggingface_hub import constants

    with running() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
        yield hub


def test_to_the_hub(texts: Path, hub: Hub) -> None:
    """Model and corpus become repositories, private, with the files of a folder; something else's is not touched."""
    export(str(texts), "hub:tiny", cell="gamma=0.3", what=("model", "corpus"))
    model, corpus = hub.repositories["models/someone/tiny"], hub.repositories["datasets/someone/tiny"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", MARK} <= model.keys()
    assert {"README.md", "data/train-00000-of-00001.parquet", MARK} == corpus.keys()
    assert set(hub.private.values()) == {True}
    assert 'from_pretrained("someone/tiny")' in model["README.md"].decode()
    export(str(texts), "hub:someone/tiny", cell="gamma=0.3")  # the same thing again
    before = len(hub.requests)
    with pytest.raises(UserError, match="holds another export"):
        export(str(texts), "hub:someone/tiny", cell="gamma=0.3", generation="0")
    hub.repositories["models/someone/mine"] = {"model.safetensors": b"mine"}
    with pytest.raises(UserError, match="holds no export"):
        export(str(texts), "hub:someone/mine", cell="gamma=0.3")
    assert not [one for one in hub.requests[before:] if "create" in one or "commit" in one]


@pytest.mark.parametrize(
    ("token", "offline", "message"),
    [
        ("", False, "there is no token for the hub"),
        ("hf_x", True, "HF_HUB_OFFLINE is set"),
        ("hf_x", False, "did not take it"),
    ],
)
def test_a_hub_that_cannot_be_had_is_one_line(
    texts: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, offline: bool, message: str
) -> None:
    """No token, offline, or nobody answers: told before anything is uploaded."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=rf"--to hub:a/b: .*{message}") as error:
        export(str(texts), "hub:a/b", cell="gamma=0.3")
    assert "\n" not in str(error.value)
    assert not hub.requests
