"""An engine that has held many weights answers as one that held no others, or refuses to answer."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engines.helpers import ENGINE, GREEDY, SAMPLED, Reference, ask, make_checkpoint, make_prompts, needs_vllm
from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.engines.pretrained import WeightsError

pytestmark = [pytest.mark.ray, needs_vllm]


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_greedy_output_after_swaps_equals_a_fresh_engines(
    pool: EnginePool, checkpoints: dict[str, Path], reference: Reference, kind: str
) -> None:
    """Protects the swap in place: a stale packed head or a stale prefix cache would answer from the old weights.

    The first answer also shows that an engine started with random weights holds the real ones after the swap.
    """
    starts = pool.state().starts
    for index in (0, 1, 0, 1, 1, 0):
        name = f"{kind}{index}"
        answer = ask(pool, checkpoints[name], reference.prompts, GREEDY)
        assert answer.weights_version == name
        assert answer.generated_ids.to_pylist() == reference.greedy[name]
    assert pool.state().starts - starts <= 1, "swaps between weights of one architecture start no engine"
    assert reference.greedy[f"{kind}0"] != reference.greedy[f"{kind}1"]


def test_engines_of_two_architectures_stay_warm(
    pool: EnginePool, checkpoints: dict[str, Path], reference: Reference
) -> None:
    """Protects ecosystems of several models: once each has started, none starts again, and each holds its weights."""
    for name in ("tied0", "untied0"):
        ask(pool, checkpoints[name], reference.prompts, GREEDY)
    starts = pool.state().starts
    for name in ("tied1", "untied1", "tied0", "untied1", "tied1", "untied0"):
        assert (
            ask(pool, checkpoints[name], reference.prompts, GREEDY).generated_ids.to_pylist() == reference.greedy[name]
        )
    assert pool.state().starts == starts


def test_an_engine_that_makes_room_leaves_the_others_whole(
    pool: EnginePool, checkpoints: dict[str, Path], reference: Reference
) -> None:
    """Protects lineages of more models than there is room for: vLLM ends all of a process with one."""
    for longest in (320, 321, 322):
        engine = ENGINE.model_copy(update={"max_model_len": longest})
        ask(pool, checkpoints["tied0"], reference.prompts, GREEDY, engine=engine)
        answer = ask(pool, checkpoints["tied1"], reference.prompts, GREEDY)
        assert answer.generated_ids.to_pylist() == reference.greedy["tied1"]


def test_an_answer_depends_on_the_call_alone(
    pool: EnginePool, checkpoints: dict[str, Path], reference: Reference
) -> None:
    """Protects kill-and-resume: the same sampled call gives the same tokens after others, and in another process."""
    for between in ("untied0", "tied1"):  # an engine that held others of another architecture, then of its own
        ask(pool, checkpoints[between], make_prompts(10, 40, seed=7), SAMPLED)
        answer = ask(pool, checkpoints["tied0"], reference.prompts, SAMPLED)
        assert answer.generated_ids.to_pylist() == reference.sampled["tied0"]
    ask(pool, checkpoints["tied0"], reference.prompts[:3], SAMPLED)
    answer = ask(pool, checkpoints["tied0"], reference.prompts, SAMPLED)
    assert answer.generated_ids.to_pylist() == reference.sampled["tied0"]


def test_a_stale_tied_head_is_refused(reference: Reference) -> None:
    """Protects the proof itself: the swap as vLLM does it by default must not pass."""
    assert "does not hold the file's values" in reference.stale_head


def test_a_wrong_tensor_is_refused(reference: Reference) -> None:
    """Protects the proof itself, for plain, fused, packed and unpacked parameters; and that a right one passes."""
    for tensor, error in reference.altered.items():
        assert "does not hold the file's values" in error, tensor
    assert reference.unaltered == ""


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_a_missing_tensor_fails_loudly(
    pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path, reference: Reference, tensor: str
) -> None:
    """Protects against vLLM's mere warning; afterwards the engine answers right again."""
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["tied1"], broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks tensors"):
        ask(pool, broken, reference.prompts, GREEDY)
    answer = ask(pool, checkpoints["tied0"], reference.prompts, GREEDY)
    assert answer.generated_ids.to_pylist() == reference.greedy["tied0"]


def test_a_folder_without_weights_fails_loudly(pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects against an answer from the random weights an engine is started with."""
    shutil.copy(checkpoints["tied0"] / "config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        ask(pool, tmp_path, make_prompts(2, 8), GREEDY)


def test_a_row_that_does_not_fit_is_refused(pool: EnginePool, checkpoints: dict[str, Path]) -> None:
    """Protects against rows that are silently cut short."""
    with pytest.raises(ValueError, match="do not fit an engine sized for 512"):
        ask(pool, checkpoints["tied0"], make_prompts(1, 500), SAMPLED)
    with pytest.raises(ValueError, match="a prompt is empty"):
        ask(pool, checkpoints["tied0"], [[5], []], SAMPLED)


def test_a_model_without_a_kernel_is_refused(pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects the message: vLLM itself would fail at the first token, and stay stuck with half a call."""
    small_heads = make_checkpoint(tmp_path / "small_heads", 0, tied=True, heads=8)
    with pytest.raises(ValueError, match=r"no attention for heads of size 16.*kind: huggingface"):
        ask(pool, small_heads, make_prompts(1, 8), GREEDY)
    assert len(ask(pool, checkpoints["tied0"], make_prompts(1, 8), GREEDY).generated_ids) == 1


def test_a_killed_engine_answers_after_all(pool: EnginePool, checkpoints: dict[str, Path]) -> None:
    """Protects the sweep against a lost engine: kill -9 in mid-call, and the same answer comes from the next one."""
    prompts = make_prompts(128, 16)  # a second or two of work, which is asked about every 20 ms
    decoding = DecodingConfig(temperature=0.8, max_new_tokens=100)
    expected = ask(pool, checkpoints["tied1"], prompts, decoding).generated_ids
    ask(pool, checkpoints["tied0"], prompts[:1], GREEDY)
    import ray

    starts, pid = pool.state().starts, ray.get(pool.engines[0].pid.remote())
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(ask(pool, checkpoints["tied1"], prompts, decoding).generated_ids)
    )
    asked = time.time()
    caller.start()
    while not (pool.state().engines[0].name == "generating" and pool.state().engines[0].since > asked):
        assert caller.is_alive(), "the call ended before its engine could be killed"
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    caller.join(120)
    assert [answer.equals(expected) for answer in answers] == [True]
    assert ray.get(pool.engines[0].pid.remote()) != pid
    assert pool.state().starts == starts + 1
