"""This project's trainer beside Hugging Face's: the same Llamas, blocks, order, optimiser and schedule, in float32.

    python -m benchmarks.trainer [--sizes 1M 25M 135M] [--rounds 3] [--threads 2]

Each trainer has a process of its own, which takes a model's folder and writes one: reading and saving count. The two
take turns, and the order turns round with each round. Losses: cross entropy, and TCE with γ at the median and the 0.2
quantile of the target probability, so that about a half and a fifth of the targets are kept. Weights are random and the
text is drawn from a table of bigrams; with 135M parameters (the shape of SmolLM2-135M) there is one round.

The last line is one JSON object. For each size and loss: ``ratio`` and ``cpu_ratio`` (median of ours over theirs by
round, in seconds and in seconds of processor time), tokens per second, peak memory beyond the interpreter with its
imports, the share of targets kept, ``largest_loss_difference`` (of any step, relative; under TCE one target whose
probability lies at γ to the last digit moves it by as much as its share). For ours under cross entropy:
``share_of_peak`` (operations of the model over those that as many threads do in products of square matrices),
``memory_floor_gib`` (:func:`memory_floor`) and ``memory_over_floor``.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

BATCH, BLOCK, SEED = 16, 128, 0
RATE = 1e-4  # small enough for the kept fraction to stay near its first value
SHAPES: dict[str, dict[str, int]] = {
    "1M": {"vocab_size": 2_048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "heads": 4},
    "25M": {"vocab_size": 12_288, "hidden_size": 512, "intermediate_size": 1_408, "num_hidden_layers": 6, "heads": 8},
    "135M": {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1_536, "num_hidden_layers": 30, "heads": 9},
}
KEY_VALUE_HEADS = {"135M": 3}
STEPS = {"1M": 24, "25M": 4, "135M": 2}
KEPT = {"cross_entropy": 1.0, "tce_half": 0.5, "tce_fifth": 0.2}
SIDES = ("ours", "theirs")


def make_model(size: str, folder: Path) -> Any:
    """A Llama with random weights, saved in ``folder``."""
    import torch
    import transformers

    shape, ends = dict(SHAPES[size]), dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    heads = shape.pop("heads")
    config = transformers.LlamaConfig(
        **shape,
        num_attention_heads=heads,
        num_key_value_heads=KEY_VALUE_HEADS.get(size, heads),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **ends,  # type: ignore[arg-type]
    )
    torch.manual_seed(SEED)
    network = transformers.LlamaForCausalLM(config)
    network.save_pretrained(folder)
    return network


def make_tokens(size: str) -> np.ndarray:
    """(rows, BLOCK) int32: each token has eight successors, of which the first is the likeliest."""
    vocabulary, rng = SHAPES[size]["vocab_size"], np.random.default_rng(SEED)
    successors = rng.integers(0, vocabulary, (vocabulary, 8))
    tokens = rng.integers(0, vocabulary, (STEPS[size] * BATCH, BLOCK), dtype=np.int32)
    for place in range(1, BLOCK):
        chosen = rng.zipf(1.5, len(tokens)).clip(1, 8) - 1
        tokens[:, place] = successors[tokens[:, place - 1], chosen]
    return tokens


def thresholds(network: Any, tokens: np.ndarray) -> dict[str, float]:
    """γ of each truncated loss: the quantile of the target probability under the starting model."""
    import torch

    rows = torch.from_numpy(tokens[:2]).long()
    with torch.no_grad():
        log_p = network(rows, use_cache=False).logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])
    return {name: float(log_p.exp().quantile(kept)) for name, kept in KEPT.items() if kept < 1}


def serve(requests: Connection, side: str, threads: int) -> None:
    """One trainer's process: receives keywords, answers with what was measured, until it receives None."""
    import torch
    import transformers.trainer  # noqa: F401  # part of what the memory is counted beyond

    import fortifai_ray.families.language.training  # noqa: F401

    torch.set_num_threads(threads)
    before = _memory("VmRSS")
    while (request := requests.recv()) is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, begins anew
        begun, processor = time.perf_counter(), time.process_time()
        losses, kept = (ours if side == "ours" else theirs)(threads=threads, **request)
        answer = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}
        requests.send(answer | {"losses": losses, "kept": kept, "peak_bytes": _memory("VmHWM") - before})


def ours(*, model: Path, output: Path, tokens: np.ndarray, gamma: float | None, threads: int) -> tuple[Any, Any]:
    """(losses by step, kept fraction)."""
    from fortifai_ray.engines.in_process import InProcess
    from fortifai_ray.families.language.blocks import Blocks
    from fortifai_ray.families.language.config import TrainingConfig
    from fortifai_ray.families.language.training import train
    from fortifai_ray.losses import CrossEntropy, TruncatedCrossEntropy

    loss = CrossEntropy() if gamma is None else TruncatedCrossEntropy(gamma=gamma)
    training = TrainingConfig(epochs=1, batch_size=BATCH, block_size=BLOCK, learning_rate=RATE)
    blocks = Blocks(tokens, np.full(len(tokens), BLOCK))
    report = train(InProcess(threads), model, output, blocks, loss, training, SEED)  # type: ignore[arg-type]
    return np.load(output / "losses.npy").tolist(), report.kept_fraction


def theirs(*, model: Path, output: Path, tokens: np.ndarray, gamma: float | None, threads: int) -> tuple[Any, Any]:
    """(losses by step, None)."""
    import torch
    import transformers
    from transformers import Trainer, TrainingArguments

    from fortifai_ray.families.language.config import TrainingConfig
    from fortifai_ray.seeds import generator

    torch.set_num_threads(threads)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    losses, ours_are = [], TrainingConfig()

    class Recording(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            loss = super().training_step(*arguments, **keywords)
            losses.append(loss.detach())
            return loss

    class Truncated(Recording):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
            of_targets = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="none"
            )
            assert gamma is not None
            return (of_targets * (of_targets.detach() >= -np.log(gamma))).mean()

    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type=ours_are.schedule,
        warmup_steps=round(ours_are.warmup_ratio * (len(tokens) // BATCH)),
        weight_decay=ours_are.weight_decay,
        max_grad_norm=ours_are.max_grad_norm,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    order = generator(SEED, "epoch", 0).permutation(len(tokens))
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(tokens[order]).long()]
    kind = Recording if gamma is None else Truncated
    kind(model=network, args=arguments, train_dataset=rows).train()  # type: ignore[arg-type]
    network.save_pretrained(output)
    return torch.stack(losses).tolist(), None


def _memory(field: str) -> int:
    """A field of this process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def memory_floor(size: str, parameters: int) -> int:
    """Bytes that a float32 training step of this model needs if each is held once and nothing is computed again:
    weights, gradients, Adam's two moments; and of each token and layer what the backward pass reads, which is the
    input of each matrix product and norm, query, keys and values, and the gate and what it multiplies."""
    shape = SHAPES[size]
    width, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["heads"]
    keys = width // heads * KEY_VALUE_HEADS.get(size, heads)
    of_layer = 6 * width + 2 * keys + 3 * inner
    return 4 * (4 * parameters + BATCH * BLOCK * shape["num_hidden_layers"] * of_layer)


def peak_rate(threads: int) -> float:
    """Operations per second of float32 products of square matrices: the best of ten."""
    import torch

    torch.set_num_threads(threads)
    side, best = 2048, 0.0
    left, right = torch.randn(side, side), torch.randn(side, side)
    for _ in range(10):
        begun = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * side**3 / (time.perf_counter() - begun))
    return best


def measure(size: str, losses: list[str], rounds: int, threads: int, work: Path) -> dict[str, Any]:
    """One size; the first loss is cross entropy."""
    from benchmarks.gpu.llamas import training_flops

    network, tokens = make_model(size, work / size), make_tokens(size)
    gammas = thresholds(network, tokens)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    operations, rate = training_flops(network, BLOCK) * tokens.size, peak_rate(threads)
    del network
    found: dict[str, Any] = {"parameters": parameters}
    context, ends = multiprocessing.get_context("spawn"), {}
    for side in SIDES:
        ends[side], other = context.Pipe()
        context.Process(target=serve, args=(other, side, threads), daemon=True).start()
    for loss in losses:
        answers: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for turn in range(rounds):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                output = work / f"{size}-{loss}-{turn}-{side}"
                output.mkdir()
                keywords = {"model": work / size, "output": output, "tokens": tokens, "gamma": gammas.get(loss)}
                ends[side].send(keywords)
                answers[side].append(ends[side].recv())
                shutil.rmtree(output)
                print(size, loss, side, f"{answers[side][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        found[loss] = _compared(answers, tokens.size)
    for side in SIDES:
        ends[side].send(None)
    floor, plain = memory_floor(size, parameters), found[losses[0]]
    seconds = tokens.size / plain["ours"]["tokens_per_second"]
    plain |= {"share_of_peak": operations / seconds / rate, "peak_gigaflops": rate / 1e9}
    return found | {
        "memory_floor_gib": floor / (1 << 30),
        "memory_over_floor": plain["ours"]["peak_gib"] * (1 << 30) / floor,
    }


def _compared(answers: dict[str, list[dict[str, Any]]], tokens: int) -> dict[str, Any]:
    """What is said of one size and loss."""
    mine, other = answers["ours"], answers["theirs"]
    said: dict[str, Any] = {
        key.replace("seconds", "ratio"): statistics.median(a[key] / b[key] for a, b in zip(mine, other, strict=True))
        for key in ("seconds", "cpu_seconds")
    }
    first, second = np.array(mine[0]["losses"]), np.array(other[0]["losses"])
    said |= {"kept": mine[0]["kept"], "largest_loss_difference": float(np.abs(second / first - 1).max())}
    for side, rows in answers.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        peak = max(row["peak_bytes"] for row in rows)
        said[side] = {"tokens_per_second": tokens / seconds, "peak_gib": peak / (1 << 30)}
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--losses", nargs="+", choices=list(KEPT), default=list(KEPT), help="cross_entropy first")
    parser.add_argument("--rounds", type=int, default=3, help="of 1M and 25M")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    result: dict[str, Any] = {"threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="fortifai-trainer-") as folder:
        for size in options.sizes:
            rounds = 1 if size == "135M" else options.rounds
            result[size] = measure(size, options.losses, rounds, options.threads, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
