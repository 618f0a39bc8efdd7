"""``fortifai export``: a generation's checkpoint, its synthetic corpus, or both, into a folder or to the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from fortifai_ray.engines.checkpoints import is_adapter
from fortifai_ray.errors import UserError
from fortifai_ray.export.cards import CARD, dataset_card, model_card, with_place
from fortifai_ray.export.files import has_samples, write_adapter, write_checkpoint, write_samples, write_texts
from fortifai_ray.export.provenance import Provenance, What
from fortifai_ray.export.source import Stages, opened_chain
from fortifai_ray.export.target import Folder, Target, target_of
from fortifai_ray.results.chain import ChainResults

COLUMNS: dict[What, str] = {"model": "stage", "corpus": "synthetic_stage"}


def export(
    chain: str,
    to: str,
    *,
    storage: str = "runs",
    cell: str | None = None,
    seed: int | None = None,
    generation: str = "last",
    what: Sequence[What] = ("model",),
    public: bool = False,
    adapter: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Export a generation of a chain; returns where each part went.

    Everything that can be checked is checked before a file is written or uploaded.

    Args:
        chain: ``STORAGE/STUDY/ID`` and what else names one (:func:`~fortifai_ray.export.source.opened_chain`).
        to: a folder, or ``hub:NAME``. Of a model and a corpus, each goes into a folder of its own inside.
        storage: where names of studies without one are looked for.
        cell: the chain's cell, and ``seed`` its seed, where ``chain`` names a study.
        generation: its number, or ``last``: the last that has what is asked for.
        what: ``model``, ``corpus``, or both.
        public: whether anybody may read a new repository of the hub.
        adapter: the model as PEFT's adapter rather than merged into its model, which goes beside it unless the hub has
            it.
        announce: called with a line before each part.

    Raises:
        UserError: there is no such chain or generation, a stage is gone or damaged, or the target is taken.
    """
    number = _number(generation)
    targets = _targets(to, what, public)
    done = []
    with opened_chain(chain, storage, cell=cell, seed=seed) as (found, place):
        stages = Stages(place)
        sources = {part: _source(found, number, part, stages) for part in targets}
        if adapter and not is_adapter(sources["model"][1]):
            raise UserError(
                f"--adapter: {sources['model'][0].title} is a whole model, no adapter; leave the option out"
            )
        named = {part: "adapter" if adapter and part == "model" else part for part in targets}
        for part, target in targets.items():
            target.check(sources[part][0].identity(named[part]))
        for part, target in targets.items():
            provenance, folder = sources[part]
            announce(f"exporting the {named[part]} of {provenance.title}")
            done.append(_export(named[part], provenance, folder, stages, target))
    return done


def _number(generation: str) -> int | None:
    if generation == "last":
        return None
    if not generation.isdecimal():
        raise UserError(f"--generation {generation}: give its number, counted from 0, or last")
    return int(generation)


def _targets(to: str, what: Sequence[What], public: bool) -> dict[What, Target]:
    parts = [part for part in get_args(What) if part in what]
    inside = len(parts) > 1 and not to.startswith("hub:")
    return {part: target_of(f"{to.rstrip('/')}/{part}" if inside else to, part, public=public) for part in parts}


def _source(chain: ChainResults, generation: int | None, part: What, stages: Stages) -> tuple[Provenance, Path]:
    """What is to be exported, and the folder of its files."""
    row = chain.at(generation, COLUMNS[part])
    what = f"the {part} of {chain.name}, generation {row['generation']}"
    folder = stages.folder(row[COLUMNS[part]], what)
    manifest = stages.manifest(folder)
    human: dict[str, Any] = {}
    inputs = manifest.get("inputs", {})
    corpus = inputs.get("corpus") or _corpus_of(row, stages, what)
    if isinstance(corpus, str):
        human = stages.manifest(stages.folder(corpus, f"the human text of {what}"))
    return Provenance(chain, row, manifest, human), folder


def _corpus_of(row: dict[str, Any], stages: Stages, what: str) -> str | None:
    """The human corpus of a language model, by its checkpoint: a curated corpus does not name it."""
    if row.get("family.kind") != "language":
        return None
    return str(stages.manifest(stages.folder(row["stage"], f"the checkpoint behind {what}"))["inputs"]["corpus"])


def _export(part: str, of: Provenance, source: Path, stages: Stages, target: Target) -> str:
    tokenizer = None
    if of.human:
        tokenizer = stages.folder(str(of.human["hash"]), f"the tokenizer of {of.title}") / "tokenizer"
    with ExitStack() as stack:
        beside = target.beside if isinstance(target, Folder) else None  # on one disk, so that files are moved at once
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".fortifai-export-", dir=beside)))
        if part == "model":
            write_checkpoint(source, tokenizer, of.decoding if tokenizer else {}, folder)
            card = model_card(of, "merged" if is_adapter(source) else None)
        elif part == "adapter":
            base = of.starting_model
            write_adapter(source, base.get("hub"), base.get("revision"), tokenizer, folder)
            card = model_card(of, "adapter")
        elif has_samples(source):
            card = dataset_card(of, write_samples(source, folder))
        else:
            if tokenizer is None:
                raise UserError(f"{of.title}: its corpus is neither text nor samples; it cannot be exported")
            card = dataset_card(of, write_texts(source / "corpus", tokenizer, folder))
        (folder / CARD).write_text(with_place(card, target.name), encoding="utf-8")
        return target.publish(folder, of.identity(part))
