"""Write docs/smollm2.md: what SmolLM2-135M wrote, generation by generation, in a sweep of sweeps/smollm2_small.yaml.

python scripts/smollm2.py runs/smollm2_small
"""

import sys
from pathlib import Path
from typing import Any

import polars as pl

PROJECT = Path(__file__).resolve().parent.parent
_LENGTH = 300  # characters of a text that are shown
_ROWS = (0, 1)  # of the prompts whose continuations a sweep keeps

_HEAD = """# What a real model writes as it collapses

SmolLM2-135M-Instruct, fine-tuned on 4,096 tokens of WikiText-2 (generation 0), then in each generation on the 4,144
tokens that the generation before wrote at temperature 0.8, in one pass, on two cores: `sweeps/smollm2_small.yaml` says
why each setting is as it is. Perplexity is that of held-out human text; distinct bigrams are the share of a text's
bigrams that differ. The prompts are the same everywhere. To run it: `make smollm2`, then `fortifai sweep
sweeps/smollm2_small.yaml`; `python scripts/smollm2.py runs/smollm2_small` writes this page again.
"""


def page(generations: pl.DataFrame, samples: pl.DataFrame, note: str = "") -> str:
    """The page of a study's ``generations`` and ``samples``; ``note`` says what of it was run."""
    rows = sorted(generations.to_dicts(), key=lambda row: (*_cell(row), row["generation"]))
    horizon = 1 + max(row["generation"] for row in rows)
    chains = dict.fromkeys((*_cell(row), row["chain_id"]) for row in rows)
    numbers = "\n".join(_line(rows, chain, horizon) for *_, chain in chains)
    heads = " | ".join(f"g{g}" for g in range(horizon))
    table = (
        f"| trained | loss | seed | perplexity: {heads} | distinct bigrams: {heads} |\n"
        f"| {' | '.join(['---'] * (3 + 2 * horizon))} |\n{numbers}\n"
    )
    first = [chain for *_, seed, chain in chains if seed == min(row["seed"] for row in rows)]
    texts = "\n".join(_texts(rows, samples, chain) for chain in first)
    changes = f"{_changes(rows, horizon - 1)}\n" if horizon > 1 else ""
    return "\n".join(part for part in (_HEAD, note and f"{note}\n", changes, table, texts) if part)


def _changes(rows: list[dict[str, Any]], last: int) -> str:
    """How far each kind of chain has come by the last generation: the lowest and the highest of its seeds."""
    first = {row["chain_id"]: row for row in rows if row["generation"] == 0}
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["generation"] == last and row["chain_id"] in first:
            (trained, loss, _), start = _cell(row), first[row["chain_id"]]
            change = (row["perplexity"] / start["perplexity"], row["distinct_2"] / start["distinct_2"])
            kinds.setdefault(f"{trained}, {loss}", []).append(change)
    lines = [
        f"- {kind}: perplexity {min(grown):.2f} to {max(grown):.2f} times, distinct bigrams {min(left):.2f} to "
        f"{max(left):.2f} times"
        for kind, (grown, left) in ((kind, zip(*found, strict=True)) for kind, found in kinds.items())
    ]
    return "\n".join([f"Generation {last} against generation 0, from the lowest seed to the highest:\n", *lines])


def _cell(row: dict[str, Any]) -> tuple[str, str, int]:
    rank = row.get("training.lora.rank")
    gamma = row.get("loss.gamma")
    loss = row["loss.kind"].replace("_", " ") if gamma is None else f"{row['loss.kind'].upper()} {gamma:g}"
    return ("all weights" if rank is None else f"LoRA, rank {rank}", loss, row["seed"])


def _line(rows: list[dict[str, Any]], chain: str, horizon: int) -> str:
    own = {row["generation"]: row for row in rows if row["chain_id"] == chain}
    trained, loss, seed = _cell(next(iter(own.values())))
    values = [f"{own[g]['perplexity']:.1f}" if g in own else "" for g in range(horizon)]
    values += [f"{own[g]['distinct_2']:.2f}" if g in own else "" for g in range(horizon)]
    return f"| {trained} | {loss} | {seed} | {' | '.join(values)} |"


def _texts(rows: list[dict[str, Any]], samples: pl.DataFrame, chain: str) -> str:
    trained, loss, seed = _cell(next(row for row in rows if row["chain_id"] == chain))
    lines = [f"## {trained[0].upper()}{trained[1:]}, {loss}, seed {seed}"]
    for number in _ROWS:
        own = samples.filter((pl.col("chain_id") == chain) & (pl.col("row") == number)).sort("generation").to_dicts()
        if own:
            lines.append(f"\nAfter “{_shown(own[0]['prompt_text'])}”:\n")
        lines += [f"- **g{text['generation']}** {_shown(text['generated_text'])}" for text in own]
    return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    """A text on one line, as Markdown shows it unchanged."""
    short = " ".join(text.split())
    short = short if len(short) <= _LENGTH else f"{short[:_LENGTH]}…"
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|~$" else sign for sign in short)


def main() -> None:
    results = Path(sys.argv[1]) / "results"
    tables = (pl.read_parquet(results / f"{name}.parquet") for name in ("generations", "samples"))
    (PROJECT / "docs" / "smollm2.md").write_text(page(*tables), encoding="utf-8")


if __name__ == "__main__":
    main()
