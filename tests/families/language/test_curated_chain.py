"""A language chain under a list of curation steps: what each reads and keeps, its stages and its measures, from end to
end without Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus
from fortifai_ray.families.language.data import read_corpus
from fortifai_ray.families.language.judge_config import judge_config
from fortifai_ray.recipe.curation import Judge
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.preflight import check_study

CONTENT: dict[str, Any] = {
    "name": "curated",
    "family": {
        "kind": "language",
        "model": {"preset": "llama-tiny", "vocab_size": 512, "hidden_size": 32, "layers": 1},
    },
    "corpus": {"source": "pydoc", "train_tokens": 1024},
    "decoding": {"temperature": 1.0, "max_new_tokens": 16, "context_tokens": 8},
    "training": {"epochs": 1, "batch_size": 4, "block_size": 64, "learning_rate": 1e-3},
    "evaluation": {"sample_texts": 2},
    "engine": {"kind": "huggingface"},
    "generations": 2,
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
    "curation": [
        {"kind": "choice", "of": 2, "reward": "my_curation:letters"},
        {"kind": "my_curation:Short", "words": 12},
        {"kind": "verifier", "by": {"model": {"preset": "llama-docs"}}, "keep": 0.5},
    ],
}


@pytest.fixture(autouse=True)
def _beside_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipe"))


def chain(study: Study, store: StageStore, steps: Steps) -> list[Any]:
    return list(run_chain(ChainTask.of(study, study.chains[0], check_study(study, store)), steps, InProcess()))


def test_a_list_of_steps(tmp_path: Path) -> None:
    """Two rows for each prompt, of which the longer is kept; then the short ones of those; then the half
    that is likelier under another model, whose tokenizer is not the chain's.
    The measures are those of the rows, the second generation trains on what is left, and a replay finds every stage."""
    study, store = make_study(CONTENT, "curated.yaml"), StageStore(tmp_path)
    first, second = chain(study, store, Steps(store))

    stages = [first.row["synthetic_stage"]]
    while (manifest := json.loads((store.path(stages[-1]) / "manifest.json").read_text()))["kind"] == "curate":
        stages.append(manifest["inputs"]["written"])
    likely, short, longer, written = (read_corpus(store.path(stage) / "corpus") for stage in stages)
    prompts = written["prompt_ids"].to_pylist()
    assert prompts[::2] == prompts[1::2]
    assert len({tuple(prompt) for prompt in prompts}) > len(prompts) // 4
    assert written["seed"].to_pylist()[:2] != written["seed"].to_pylist()[1:3]

    logs = [json.loads((store.path(stage) / "curation.json").read_text()) for stage in stages[:3]]
    assert [log["kind"] for log in logs] == ["verifier", "my_curation:Short", "choice"]
    assert longer["row"].to_pylist() == logs[2]["passed_rows"]
    assert [row // 2 for row in longer["row"].to_pylist()] == list(range(len(written) // 2))
    assert set(short["row"].to_pylist()) <= set(longer["row"].to_pylist())
    assert len(likely) == -(-len(short) // 2)
    corpus = prepare_corpus(study.chains[0].recipe.corpus, study.chains[0].recipe.family.model, store)
    scores = dict(zip(short["row"].to_pylist(), by_another_model(corpus, short), strict=True))
    chosen = set(likely["row"].to_pylist())
    assert min(scores[row] for row in chosen) > max(scores[row] for row in scores.keys() - chosen) - 1e-4  # rounding

    shares = [len(after) / len(before) for after, before in ((longer, written), (short, longer), (likely, short))]
    assert [first.row[f"curated_kept_{number}"] for number in (1, 2, 3)] == pytest.approx(shares)
    assert first.row["curated_kept"] == pytest.approx(np.prod(shares))
    assert [each["kind"] for each in first.details["curation"]] == ["choice", "my_curation:Short", "verifier"]
    assert "curation_precision" not in first.row  # the truth of a text is not known
    assert second.row["curated_kept"] is None  # nothing follows the last generation
    assert second.row["synthetic_size"] == sum(map(len, likely["generated_ids"].to_pylist()))

    again = Steps(StageStore(tmp_path), replay=True)
    replayed = chain(study, store, again)
    assert (again.computed, [one.row["perplexity"] for one in replayed]) == (
        0,
        [first.row["perplexity"], second.row["perplexity"]],
    )


def test_what_a_step_of_ones_own_makes_of_text_is_tried(tmp_path: Path) -> None:
    """A reward for samples, in place of one for texts."""
    study = make_study(
        {**CONTENT, "curation": {"kind": "choice", "reward": "my_curation:first_number"}}, "curated.yaml"
    )
    said = r"^curated\.yaml: curation\.reward: my_curation:first_number failed: TypeError: .*, at my_curation\.py:\d+ "
    with pytest.raises(UserError, match=rf"{said}\(tried on \d+ human items\)$"):
        check_study(study, StageStore(tmp_path))


def test_a_list_that_leaves_nothing(tmp_path: Path) -> None:
    """The steps after it read nothing, call nobody, and measure nothing; the chain ends, with its reason."""
    steps = [
        {"kind": "my_curation:Nothing"},
        {"kind": "choice", "reward": "my_curation:letters"},
        {"kind": "deduplicate"},
    ]
    study, store = make_study({**CONTENT, "curation": steps}, "curated.yaml"), StageStore(tmp_path)
    first, second = chain(study, store, Steps(store))
    names = ("curated_kept", "curated_kept_1", "curated_kept_2", "curated_kept_3", "curation_reward")
    assert [first.row[name] for name in names] == [0.0, 0.0, None, None, None]
    assert "the training set is empty" in second.row["collapse_reason"]


def test_a_step_draws_by_seed_and_generation_alone(tmp_path: Path) -> None:
    """Chains that differ in their training write other texts, and a step that draws lots keeps the rows of the same
    numbers of both, so that they stay paired; another seed, and the step after it, draws others."""
    varied = {"training.learning_rate": [1e-3, 1e-2], "seed": [0, 1]}
    steps = [{"kind": "my_curation:Random"}] * 2
    study, store = make_study({**CONTENT, "curation": steps, "vary": varied}, "curated.yaml"), StageStore(tmp_path)
    inputs, kept, texts = check_study(study, store), [], []
    for one in study.chains:
        first = next(run_chain(ChainTask.of(study, one, inputs), Steps(store), InProcess()))
        last = first.row["synthetic_stage"]
        before = json.loads((store.path(last) / "manifest.json").read_text())["inputs"]["written"]
        logs = [json.loads((store.path(stage) / "curation.json").read_text()) for stage in (before, last)]
        kept.append([log["passed_rows"] for log in logs])
        texts.append(read_corpus(store.path(before) / "corpus")["generated_ids"].to_pylist())
    assert texts[0] != texts[2]
    assert kept[0] == kept[2]
    assert kept[1] == kept[3] != kept[0]
    assert [kept[0][0].index(row) for row in kept[0][1]] != kept[0][0][: len(kept[0][1])]


def by_another_model(corpus: Corpus, rows: pa.Table) -> np.ndarray:
    """Log-likelihood per token of each row's text after its prompt, row by row, in the model's own tokens."""
    import torch
    import transformers

    place = judge_config(Judge(model={"preset": "llama-docs"})).checkpoint
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    scores = []
    for prompt, text in zip(rows["prompt_ids"].to_pylist(), rows["generated_ids"].to_pylist(), strict=True):
        given, own = (tokenizer(corpus.decode([ids])[0])["input_ids"] for ids in (prompt, text))
        with torch.no_grad():
            logs = model(torch.tensor([given + own])).logits[0].log_softmax(-1)
        scores.append(np.mean([logs[at - 1, (given + own)[at]].item() for at in range(len(given), len(given + own))]))
    return np.array(scores)
