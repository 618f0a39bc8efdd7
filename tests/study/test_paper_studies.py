"""The studies at the papers' size, run here on small random checkpoints of the very architectures they name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.evaluation.benchmarks.kr_questions import Question, save_questions
from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
from fortifai_ray.families.language.corpus import Corpus, prepare_corpus, split_documents
from fortifai_ray.families.language.data import read_corpus
from fortifai_ray.families.language.texts import read_documents
from fortifai_ray.recipe.regimes import Pool, take
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Chain, Study, load_study
from fortifai_ray.sweep.preflight import check_study, notices

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
PAPERS = ("fortifai2025_llama", "fortifai2025_gemma", "fortifai2025_deepseek", "shumailov2024_opt125m")

HELD_OUT = 0.02
TRAIN_TOKENS = 1536
_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
}
_LLAMA3_POSITIONS = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def configuration(paper: str, ends: dict[str, int]) -> Any:
    """The paper's architecture with everything that is no size as the published checkpoint has it."""
    import transformers

    if paper == "fortifai2025_llama":
        return transformers.LlamaConfig(**_SHAPE, **ends, tie_word_embeddings=True, rope_parameters=_LLAMA3_POSITIONS)
    if paper == "fortifai2025_gemma":
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
        return transformers.Gemma3TextConfig(**_SHAPE, **ends, **layers, head_dim=32, query_pre_attn_scalar=32)
    if paper == "fortifai2025_deepseek":
        return transformers.Qwen2Config(**_SHAPE, **ends, tie_word_embeddings=False)
    sizes = {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1}
    kept = {key: value for key, value in _SHAPE.items() if key not in ("num_key_value_heads", "initializer_range")}
    return transformers.OPTConfig(**kept, **ends, **sizes)  # its dropout of 0.1 included


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Whose tokenizer the checkpoints get."""
    model = ModelConfig(preset="llama-tiny", vocab_size=512)
    return prepare_corpus(CorpusConfig(source="pydoc"), model, StageStore(tmp_path_factory.mktemp("text")))


def checkpoint(paper: str, text: Corpus, folder: Path) -> Path:
    """A random model as a folder of the hub: weights, configuration and tokenizer."""
    import torch
    import transformers

    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), text.end_of_text)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configuration(paper, ends)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(text.tokenizer_path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For each benchmark a few questions in its own format, and where they lie: what a study's entry is given."""
    folder = tmp_path_factory.mktemp("benchmarks")
    pair = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}
    files: dict[str, list[dict[str, Any]]] = {
        "blimp/adjunct_island.jsonl": [pair] * 2,
        "blimp/causative.jsonl": [pair] * 2,
        "gsm8k/test.jsonl": [{"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"}] * 2,
        "gsm8k/train.jsonl": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(6)],
        "mathqa.json": [
            {"Problem": "What is 1 + 1?", "options": "a ) 2 , b ) 3 , c ) 4 , d ) 5 , e ) 6", "correct": "a"}
        ]
        * 2,
        "hellaswag.jsonl": [{"activity_label": "a", "ctx_a": "He", "ctx_b": "", "endings": list("stuv"), "label": 1}]
        * 2,
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        whole = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(whole)
    source = "".join(split_documents(read_documents(CorpusConfig(source="pydoc")).texts, HELD_OUT)[0][:20])[:8000]
    pieces = [(source[at : at + 80], source[at + 80 : at + 160]) for at in range(0, len(source), 160)]
    questions = [Question(before, after, " ".join(reversed(after.split()))) for before, after in pieces]
    save_questions(questions, folder / "kr.json")
    return {
        "kr_test": {"path": str(folder / "kr.json"), "fractions": 2},
        "blimp": {"path": str(folder / "blimp")},
        "hellaswag": {"path": str(folder / "hellaswag.jsonl")},
        "gsm8k": {"path": str(folder / "gsm8k"), "max_new_tokens": 4},
        "mathqa": {"path": str(folder / "mathqa.json")},
    }


def small(paper: str, model: Path, benchmarks: dict[str, dict[str, Any]], *more: str) -> Study:
    """The study as it ships, but for its model, its sizes and where its data lie."""
    file = SWEEPS / f"{paper}.yaml"
    content = yaml.safe_load(file.read_text())
    asked = [{**entry, **benchmarks[entry["task"]]} for entry in content["evaluation"]["benchmarks"]]
    tasks = [entry["task"] for entry in asked]
    assert tasks == ["kr_test", "blimp", "hellaswag", "gsm8k", "mathqa"][: len(asked)]
    sizes = {
        "family.model": {"path": str(model)},
        "corpus": {"source": "pydoc", "train_tokens": TRAIN_TOKENS, "held_out": HELD_OUT, "order": "sequential"},
        "evaluation.benchmarks": asked,
        "training.epochs": 1,
        "training.batch_size": 4,
        "generations": 2,
        "vary.seed": [0],
        "claims": [],
    }
    if "gradient_accumulation" in content["training"]:
        sizes["training.gradient_accumulation"] = 2
    return load_study(file, [*(f"{key}={json.dumps(value)}" for key, value in sizes.items()), *more])


def chosen(study: Study) -> Chain:
    """The chain with what the paper is about: TCE, or the repetition penalty."""
    return next(
        chain
        for chain in study.chains
        if chain.varied.get("loss.kind") == "tce" or chain.varied.get("decoding.repetition_penalty") == 2.0
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_a_study_at_the_papers_settings_runs(
    paper: str, text: Corpus, benchmarks: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Training with the fused head, beams on the Hugging Face engine and all benchmarks, for two generations."""
    study = small(paper, checkpoint(paper, text, tmp_path / "model"), benchmarks)
    store, chain = StageStore(tmp_path / "store"), chosen(study)
    task = ChainTask.of(study, chain, check_study(study, store))
    rows = [dict(result.row) for result in run_chain(task, Steps(store), InProcess())]

    assert [row["generation"] for row in rows] == [0, 1]
    rewritten = TRAIN_TOKENS - chain.recipe.decoding.context_tokens  # the first context is no row's continuation
    incremental = chain.recipe.regime.kind == "incremental"
    if incremental:
        signs = TRAIN_TOKENS // 32  # what they are measured on, after the last generation too
        assert [row["distinct_prompts"] for row in rows] == [rewritten // 32, signs]
        written = read_corpus(store.path(rows[0]["synthetic_stage"]) / "corpus")["generated_ids"].combine_chunks()
        again = Pool("written", written.value_lengths().to_numpy(), synthetic=True)  # of the text, tokenised again
        rewritten = take(again, TRAIN_TOKENS).size  # more than before, where it is noise; the regime takes no more
        assert all(row["kept_epoch"] == 0 for row in rows)
        assert all(math.isfinite(row["unigram_kl"]) for row in rows), "a sign of collapse"
    share = rewritten / (rewritten + TRAIN_TOKENS) if incremental else 1.0
    assert [row["synthetic_ratio_realised"] for row in rows] == [0.0, pytest.approx(share, abs=1e-6)]
    for row in rows:
        measured = [f"{task}_accuracy" for task in ("kr", "blimp", "hellaswag", "gsm8k", *["mathqa"] * incremental)]
        for metric in ("perplexity", *measured):
            assert math.isfinite(row[metric]), metric
        trained = store.open(row["stage"])
        assert trained is not None
        assert trained.outputs["output_head"] == "fused"
        assert trained.outputs["diverged"] is None
        if incremental:
            assert math.isfinite(row["kr_accuracy_fortifai_synthetic"]), "the paper's time to failure"
    assert_beams(store, rows[0], chain.recipe, text)


def assert_beams(store: StageStore, row: dict[str, Any], recipe: Any, text: Corpus) -> None:
    """What the engine wrote is what transformers' own ``generate`` gives the trained model, row by row; where it is
    tokenised again, its text is."""
    import torch
    import transformers

    decoding = recipe.decoding
    model = transformers.AutoModelForCausalLM.from_pretrained(store.path(row["stage"])).eval()
    written = read_corpus(store.path(row["synthetic_stage"]) / "corpus")
    assert set(written["weights_version"].to_pylist()) == {row["stage"]}
    prompts = torch.tensor(written["prompt_ids"].to_pylist()[:2])
    with torch.inference_mode():
        expected = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            num_beams=5,
            repetition_penalty=decoding.repetition_penalty,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.max_new_tokens,
            eos_token_id=text.end_of_text if decoding.min_new_tokens else None,
            pad_token_id=0,
        )[:, prompts.shape[1] :].tolist()
    if recipe.training.retokenise:
        whole = text.decode([written["generated_ids"].combine_chunks().flatten().to_pylist()])[0]
        assert whole.startswith("".join(text.decode(expected)))
        assert text.end_of_text not in expected[0] + expected[1]
    else:
        assert {len(ids) for ids in written["generated_ids"].to_pylist()} == {decoding.max_new_tokens}
        assert written["generated_ids"].to_pylist()[:2] == expected


@pytest.mark.parametrize("paper", [paper for paper in PAPERS if paper.startswith("fortifai2025")])
def test_a_study_of_the_authors_pipeline_has_its_details(
    paper: str, text: Corpus, benchmarks: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """What their scripts do, key by key; that the epoch is chosen by what is judged is told, and two keys undo it."""
    content = yaml.safe_load((SWEEPS / f"{paper}.yaml").read_text())
    assert content["corpus"]["validation"] == {"split": "validation"}, "nothing of the training split is held out"
    model = checkpoint(paper, text, tmp_path / "model")
    recipe: Any = small(paper, model, benchmarks).chains[0].recipe
    assert (recipe.training.keep, recipe.training.keep_by) == ("best", "kr_accuracy_fortifai_left")
    assert (recipe.training.pack, recipe.training.retokenise) == ("running", True)
    assert recipe.decoding.min_new_tokens == recipe.decoding.max_new_tokens == 32
    assert {"mathqa_accuracy", "unigram_kl_fortifai", "kr_accuracy_fortifai_synthetic"} <= set(recipe.metrics)
    (told,) = [line for line in notices(small(paper, model, benchmarks)) if "flatters" in line and "synthetic" in line]
    assert "kr_accuracy_fortifai_left chooses each generation's epoch" in told
    last = small(paper, model, benchmarks, "training.keep=last", "training.keep_by=perplexity")
    assert not any("flatters" in line for line in notices(last))
