"""The platform beside the script that one would write otherwise: the same chains, in seconds and in memory.

    python -m benchmarks.plain_script [--rounds 3] [--form both] [--file sweeps/quickstart.yaml] [--set KEY=VALUE …]

The script runs one chain after the other with as many threads as there are cores. Hugging Face's Trainer fits each
generation, a loop takes its perplexity, and an offline ``vllm.LLM`` writes the next training set: ``cold`` starts one
in a process of its own for each generation, ``warm`` keeps one and changes its weights. Corpus, tokenizer, starting
models, seeds, losses and the numbers of tokens are the study's (generation 0 sees the same blocks); by default those of
four of the quickstart's chains. The script's tokens are made beforehand and not counted.

The platform (``fortifai sweep`` into an empty storage) runs twice: as a user gets it, with all that the study asks for,
signs of collapse and KR pairs included, where a chain ends once its collapse is confirmed; and ``alike``, with what the
script does: perplexity alone, every generation of every chain. After the last generation the script writes no text,
``alike`` the four rows that a report shows, and the platform as a user gets it a whole corpus, whose signs it takes.
The platform's time is the command's, from reading the text to the report.

The order turns round with each round, so that other load affects all alike. The last line is one JSON object: seconds
and peak memory (proportional set size of all processes) of each; ``cold_ratio``, ``warm_ratio``, ``alike_cold_ratio``
and ``alike_warm_ratio`` (the platform's median over the script's); ``floor_seconds`` (the platform's useful seconds at
full use of the cores, of both of its runs); and the perplexities of both by chain and generation, which agree as far as
chains with other noise can. Those of the script are the same for both of its forms.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PLATFORM = {  # settings of each form
    "platform": [],
    "alike": ["evaluation.signs=null", "evaluation.benchmarks=[]", "early_stopping=false"],
}
SCRIPT = ("cold", "warm")
FOUR_CHAINS = ("vary.seed=[0, 1]",)  # under each of the quickstart's two losses
THREADS = len(os.sched_getaffinity(0))
KV_CACHE_BYTES = 256 << 20
ENGINE = {  # without these, vLLM starts a second process and binds all engines of a machine to the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def prepare(file: Path, settings: list[str], folder: Path) -> list[dict[str, Any]]:
    """Write what the script reads into ``folder``, and return its chains. The platform's own functions make it."""
    from fortifai_ray.engines.in_process import InProcess
    from fortifai_ray.families.language.family import LanguageFamily
    from fortifai_ray.storage.location import Storage
    from fortifai_ray.storage.steps import Steps
    from fortifai_ray.storage.store import StageStore
    from fortifai_ray.study.study import load_study
    from fortifai_ray.sweep.preflight import check_study

    study, store = load_study(file, settings), StageStore(Storage.of(folder))
    inputs, chains = check_study(study, store), []
    for chain in study.chains:
        recipe: Any = chain.recipe
        family = LanguageFamily.of(recipe, inputs.of(recipe), Steps(store), InProcess())
        size, human = recipe.training.block_size, family.human()
        blocks = family.corpus.blocks(family.corpus.train, size)[human.order[: human.budget // size]]
        data = folder / f"{chain.chain_id}.npz"
        np.savez(
            data, human=blocks, text=family.corpus.train, held_out=family.corpus.blocks(family.corpus.held_out, size)
        )
        chains.append(
            {
                "label": chain.keys,
                "data": str(data),
                "model": str(family.init(None, 0).path),
                **{key: recipe.model_dump(mode="json")[key] for key in ("seed", "loss", "decoding", "training")},
                "generations": recipe.generations,
            }
        )
    return chains


def run_script(chains: list[dict[str, Any]], *, keep: bool, work: Path) -> dict[str, list[float]]:
    """The script: one chain after the other; returns each one's perplexities."""
    import torch

    torch.set_num_threads(THREADS)
    engine = Engine() if keep else None
    perplexities = {}
    for number, chain in enumerate(chains):
        perplexities[chain["label"]] = run_chain(chain, engine, work / str(number))
    if engine:
        engine.end()
    return perplexities


def run_chain(chain: dict[str, Any], engine: "Engine | None", work: Path) -> list[float]:
    """One chain: fit, perplexity, text, and again."""
    from transformers import AutoModelForCausalLM

    data, decoding, rng = np.load(chain["data"]), chain["decoding"], np.random.default_rng(chain["seed"])
    model = AutoModelForCausalLM.from_pretrained(chain["model"], dtype="float32")
    blocks, perplexities = data["human"], []
    rows = -(-blocks.size // decoding["max_new_tokens"])
    for generation in range(chain["generations"]):
        fit(model, blocks, chain, work)
        perplexities.append(perplexity(model, data["held_out"]))
        if generation == chain["generations"] - 1:
            break
        folder = work / f"generation-{generation}"
        model.save_pretrained(folder)
        starts = rng.integers(0, len(data["text"]) - decoding["context_tokens"], rows)
        prompts = [data["text"][start : start + decoding["context_tokens"]].tolist() for start in starts]
        writer = engine or Engine()
        tokens = writer.generate(folder, prompts, decoding, seed=int(rng.integers(1 << 31)))
        if writer is not engine:
            writer.end()
        flat = np.concatenate([np.asarray(row) for row in tokens])[: blocks.size]
        blocks = flat[: len(flat) // blocks.shape[1] * blocks.shape[1]].reshape(-1, blocks.shape[1])
    return perplexities


def fit(model: Any, blocks: np.ndarray, chain: dict[str, Any], work: Path) -> None:
    """Train ``model`` on blocks of tokens with Hugging Face's Trainer."""
    import torch
    from transformers import Trainer, TrainingArguments

    settings, loss = chain["training"], chain["loss"]
    steps = settings["epochs"] * -(-len(blocks) // settings["batch_size"])
    gamma = loss["gamma"] if loss["kind"] == "tce" else None

    class TruncatedTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="none"
            )
            value = (losses * (losses.detach() >= -np.log(gamma))).mean()
            return (value, {"logits": logits}) if return_outputs else value

    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=round(settings["warmup_ratio"] * steps),
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=chain["seed"],
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.tensor(np.asarray(blocks), dtype=torch.long)]
    kind = TruncatedTrainer if gamma is not None else Trainer
    kind(model=model, args=arguments, train_dataset=rows).train()  # type: ignore[arg-type]


def perplexity(model: Any, held_out: np.ndarray, batch: int = 16) -> float:
    """Of blocks of tokens."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(held_out), batch):
            tokens = torch.tensor(held_out[start : start + batch], dtype=torch.long)
            logits, targets = model(input_ids=tokens).logits[:, :-1], tokens[:, 1:]
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += targets.numel()
    return float(np.exp(total / count))


class Engine:
    """A process with an offline ``vllm.LLM``."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there,), daemon=True)
        self._process.start()

    def generate(self, model: Path, prompts: list[list[int]], decoding: dict[str, Any], seed: int) -> list[list[int]]:
        """The tokens that a model writes after each prompt."""
        self._here.send((str(model), prompts, decoding, seed))
        return list(self._here.recv())

    def end(self) -> None:
        self._here.send(None)
        self._process.join()


def serve(requests: Connection) -> None:
    """In the engine's process: start with the first model, and take the weights of each other."""
    os.environ.update(ENGINE)
    from vllm import LLM, SamplingParams

    llm: Any = None
    while (request := requests.recv()) is not None:
        model, prompts, decoding, seed = request
        if llm is None:
            longest = decoding["context_tokens"] + decoding["max_new_tokens"]
            llm = LLM(
                model,
                skip_tokenizer_init=True,
                enforce_eager=True,  # compiling would take longer than it saves here
                dtype="float32",
                max_model_len=longest,
                kv_cache_memory_bytes=KV_CACHE_BYTES,
                worker_extension_cls="fortifai_ray.engines.vllm_worker.WeightSwap",
            )
        else:
            # By vLLM's own reload_weights a CPU keeps the packed output embedding of the model before, without a word.
            ((wrong, _),) = llm.collective_rpc("swap_weights", args=(model,))
            assert not wrong, wrong
            llm.reset_prefix_cache()
        sampling = [
            SamplingParams(
                temperature=decoding["temperature"],
                max_tokens=decoding["max_new_tokens"],
                ignore_eos=True,
                seed=seed + row,
                detokenize=False,
            )
            for row in range(len(prompts))
        ]
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        requests.send([list(answer.outputs[0].token_ids) for answer in answers])


def told_perplexities(results: Path, summary: dict[str, Any]) -> dict[str, list[float]]:
    """The platform's, by chain and generation."""
    import polars as pl

    rows = pl.read_parquet(results / "generations.parquet").sort("generation")
    return {
        chain["label"]: rows.filter(pl.col("chain_id") == chain["chain_id"])["perplexity"].to_list()
        for chain in summary["chains"]
    }


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; returns its seconds, and the most memory of it and its children at once, in GiB."""
    begun, most = time.monotonic(), 0
    process = psutil.Popen(command, env=os.environ | environment, stdout=sys.stderr)
    while process.poll() is None:
        held = 0
        with suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    held += one.memory_full_info().pss
        most = max(most, held)
        with suppress(psutil.TimeoutExpired):
            process.wait(1.0)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.monotonic() - begun, most / (1 << 30)


def measure(file: Path, settings: list[str], rounds: int, forms: list[str]) -> dict[str, Any]:
    """Every form in each round, in turning order."""
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory(prefix="fortifai-plain-") as temporary:
        root = Path(temporary)
        (root / "chains.json").write_text(json.dumps(prepare(file, settings, root / "prepared")))
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        memory: dict[str, float] = dict.fromkeys(forms, 0.0)
        result: dict[str, Any] = {"floor_seconds": {}}
        for turn in range(rounds):
            for form in forms if turn % 2 == 0 else forms[::-1]:
                place = root / f"{form}-{turn}"
                command = [*python, "benchmarks.plain_script", "--as", form, "--work", str(place)]
                threads = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
                if form in PLATFORM:
                    changes = [part for setting in [*settings, *PLATFORM[form]] for part in ("--set", setting)]
                    command, threads = (
                        [*python, "fortifai_ray", "sweep", str(file), "--storage", str(place), *changes],
                        {},
                    )
                took, most = measured(command, threads)
                seconds[form].append(took)
                memory[form] = max(memory[form], most)
                print(f"round {turn + 1}: {form} {took:.1f} s, {most:.2f} GiB", flush=True)
                if form in PLATFORM:
                    (summary,) = place.glob("*/results/summary.json")
                    told = json.loads(summary.read_text())
                    result["floor_seconds"][form] = told["useful_seconds"] / THREADS
                    result[f"{form}_perplexities"] = told_perplexities(summary.parent, told)
                else:
                    result[f"{form}_perplexities"] = json.loads((place / "perplexities.json").read_text())
    medians = {form: statistics.median(times) for form, times in seconds.items()}
    for form in set(SCRIPT).intersection(forms):
        result |= {
            f"{form}_ratio": medians["platform"] / medians[form],
            f"alike_{form}_ratio": medians["alike"] / medians[form],
        }
    return {"seconds": seconds, "peak_gib": memory, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", type=Path, default=Path("sweeps/quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], help="as of fortifai sweep; after vary.seed=[0, 1]")
    parser.add_argument("--form", choices=[*SCRIPT, "both"], default="both", help="of the script")
    parser.add_argument("--as", dest="script", choices=SCRIPT, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.script is None:
        forms = [*PLATFORM, *(SCRIPT if options.form == "both" else [options.form])]
        print(json.dumps(measure(options.file, [*FOUR_CHAINS, *options.set], options.rounds, forms)))
        return
    options.work.mkdir()
    chains = json.loads((options.work.parent / "chains.json").read_text())
    perplexities = run_script(chains, keep=options.script == "warm", work=options.work)
    (options.work / "perplexities.json").write_text(json.dumps(perplexities))


if __name__ == "__main__":
    main()
