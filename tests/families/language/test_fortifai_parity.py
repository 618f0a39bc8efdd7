"""ForTIFAI's recursion is the authors' own, number by number.

The numbers were recorded from their published code (its data pipeline and generation loop) on this checkpoint and text:
three fractions of 12 blocks of 128, contexts of 512 tokens, 32 new ones, five beams. Each sign is a token, so that what
they write as text and tokenise again stays as many tokens.
"""

import hashlib
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fortifai_ray.chain.recursion import recursion
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.families.language.data import read_corpus
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.families.language.scoring import perplexity
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore

SIGNS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'-0123"
FRACTION, BLOCK = 12, 128
# Of each stage: human and synthetic tokens, targets of an epoch, steps of two epochs of 4 blocks, rows.
STAGES = [(1536, 0, 1524, 6, 32), (1536, 1024, 2540, 10, 64), (1536, 2048, 3556, 14, 96)]
SHORT = {2: (1536, 1024), 3: (3072, 1024)}  # of stage 1 with their `scale`: human and synthetic tokens
VALIDATION_LOSS = 5.2616376877
PROMPTS, LAST_PROMPT, WRITTEN = "5c9e5f54f75d29b5", "cbcd6d30e8597860", "0afa6b491b2e66bf"  # of stage 0: SHA-256


def text(blocks: int, seed: int) -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SIGNS[:26], k=draw.randint(2, 7))) for _ in range(60)]
    written = ""
    while len(written) < blocks * BLOCK:
        written += draw.choice(words) + draw.choice([" ", " ", " ", ", ", ". "])
    return written[: blocks * BLOCK]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint and the two texts."""
    from tokenizers import Tokenizer, decoders, models

    folder = tmp_path_factory.mktemp("given")
    vocab = {sign: number for number, sign in enumerate(["<end>", *SIGNS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(vocab), "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ends, max_position_embeddings=1024))
    with torch.no_grad():
        model.lm_head.weight[0] = 0.0  # as when the numbers were recorded
    model.save_pretrained(folder / "model")
    (folder / "train.txt").write_text(text(3 * FRACTION, 1))
    (folder / "validation.txt").write_text(text(6, 2))
    return folder


def recipe(given: Path) -> LanguageRecipe:
    """Their settings, but for a learning rate that leaves the checkpoint as it was when the numbers were recorded."""
    return LanguageRecipe(
        family={"kind": "language", "model": {"path": str(given / "model")}},
        corpus={
            "path": str(given / "train.txt"),
            "order": "sequential",
            "validation": {"path": str(given / "validation.txt")},
        },
        regime={"kind": "incremental"},
        decoding={
            "num_beams": 5,
            "repetition_penalty": 3.0,
            "max_new_tokens": 32,
            "min_new_tokens": 32,
            "context_tokens": 512,
            "prompts": "training_set",
        },
        training={
            "epochs": 2,
            "batch_size": 4,
            "pack": "running",
            "retokenise": True,
            "optimizer": "sgd",
            "schedule": "rising",
            "learning_rate": 1e-6,
        },
        generations=3,
    )


def sha(written: str) -> str:
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def family(asked: LanguageRecipe, store: StageStore) -> Any:
    prepared = asked.prepare(store, "here")
    asked.check(prepared, store, "here")
    return asked.build(prepared, Steps(store), InProcess())


def test_every_stage_has_their_numbers(given: Path, tmp_path: Path) -> None:
    """Composition, targets, steps, rows and prompts of each stage; the validation loss; stage 0's prompts and text."""
    asked = recipe(given)
    made = family(asked, StageStore(tmp_path))
    blocks = made.corpus.blocks(made.corpus.held_out, BLOCK)
    # Both sum 762 losses of size 5 in float32.
    loss = math.log(perplexity(given / "model", blocks, batch_size=8).perplexity)
    assert loss == pytest.approx(VALIDATION_LOSS, abs=1e-5)
    for generation, stage in zip(recursion(asked, made, lambda history: False), STAGES, strict=True):
        trained, written = generation.model, generation.synthetic
        assert trained is not None
        assert written is not None
        human, synthetic, targets, steps, rows = stage
        assert (generation.data.human_size, generation.data.synthetic_size) == (human, synthetic)
        assert (trained.outputs["targets"], trained.outputs["steps"]) == (2 * targets, steps)
        last = generation.number == len(STAGES) - 1  # after it, four rows are written to be read
        assert written.stage.outputs["rows"] == written.stage.outputs["distinct_prompts"] == (4 if last else rows)
        if generation.number == 0:
            table = read_corpus(written.stage.path / "corpus")
            prompts = made.corpus.decode(table["prompt_ids"].to_pylist())
            assert (sha("".join(prompts)), sha(prompts[-1])) == (PROMPTS, LAST_PROMPT)
            assert sha("".join(made.corpus.decode(table["generated_ids"].to_pylist()))) == WRITTEN
    whole = made._prompts(generation.data, 10_000, 2)
    assert len(whole) == STAGES[2][4], "what the last generation would write"


@pytest.mark.parametrize("scale", SHORT)
def test_short_runs_are_theirs(scale: int) -> None:
    """Stage 1 of their `scale`: one fraction rewritten, and scale − 1 that no stage has seen, the next of the text."""
    from fortifai_ray.families.language.prompts import human_blocks
    from fortifai_ray.recipe.regimes import Human, Incremental, Pool

    human = Human(Pool("human", torch.full((36,), BLOCK).numpy(), synthetic=False), torch.arange(36).numpy(), 1536)
    synthetic = Pool("written", torch.full((32,), 32).numpy(), synthetic=True)
    data = Incremental(fractions=scale).training_set(human, [synthetic], 1)
    assert (data.human_size, data.synthetic_size) == SHORT[scale]
    assert human_blocks(data).tolist() == list(range(FRACTION, scale * FRACTION))
