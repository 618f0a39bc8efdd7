"""Two generations of the most used architectures: training, the Hugging Face engine, training on what it wrote."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from engines.architectures import make_architecture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.checkpoints import whole_model
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.preflight import check_study

VOCABULARY = 320
CHAINS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {},
    "gpt_neox": {},
    "opt": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {},
    "mistral": {},
    "phi3": {},
    "bloom": {},
    "mamba": {},
    "mixtral": {},
    "gpt2, adapters": {"lora": {"rank": 4, "targets": "all-linear"}},
    "phi3, adapters": {"lora": {"rank": 4, "targets": ["qkv_proj"]}, "init": "base"},
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A text, and a tokenizer of it: bytes, their frequent pairs and an end of text, which is token 0."""
    said = ["the", "cat", "and", "the", "dog", "of", "a", "house", "in", "the", "town"]
    documents = [" ".join(said[i % 7 :] * 4) for i in range(120)]
    text = tmp_path_factory.mktemp("text") / "plain.txt"
    text.write_text("\n\n".join(f"{i}. {document}." for i, document in enumerate(documents)))
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(documents, trainer)
    return text, transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|endoftext|>")


def study_of(name: str, words: tuple[Path, Any], root: Path) -> Study:
    folder = make_architecture(root / "model", name.split(",")[0], vocab_size=VOCABULARY, eos_token_id=0)
    words[1].save_pretrained(folder)
    content = {
        "name": "tiny",
        "family": {"kind": "language", "model": {"path": str(folder)}},
        "corpus": {"path": str(words[0]), "train_tokens": 512},
        "regime": {"kind": "replace"},
        "decoding": {"temperature": 0.8, "max_new_tokens": 24, "context_tokens": 8},
        "training": {"epochs": 1, "batch_size": 4, "block_size": 32, "learning_rate": 1e-3, **CHAINS[name]},
        "engine": {"kind": "huggingface"},
        "generations": 2,
        "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
    }
    return make_study(content, "tiny.yaml")


@pytest.mark.parametrize("name", CHAINS)
def test_two_generations(name: str, words: tuple[Path, Any], tmp_path: Path) -> None:
    """Finite figures in both, the second trained on generated text alone; and once more, all of it from the store."""
    study, store = study_of(name, words, tmp_path), StageStore(tmp_path / "store")
    task = ChainTask.of(study, study.chains[0], check_study(study, store))
    rows = [result.row for result in run_chain(task, Steps(store), InProcess())]
    assert [row["collapse_reason"] for row in rows] == [None, None]
    assert all(row["perplexity"] > 1 for row in rows)
    assert rows[1]["human_size"] == 0
    assert rows[1]["synthetic_size"] > 480  # rows of 24 tokens, for 512
    again = Steps(StageStore(store.storage), replay=True)
    replayed = [result.row["perplexity"] for result in run_chain(task, again, InProcess())]
    assert replayed == [row["perplexity"] for row in rows]
    assert again.computed == 0
    stage = store.open(rows[1]["stage"])
    assert stage is not None
    assert (whole_model(stage.path) != stage.path) == (CHAINS[name].get("lora") is not None)
