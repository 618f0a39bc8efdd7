"""``fortifai export`` as the command line has it: its arguments and what they mean."""

from typing import TYPE_CHECKING, Annotated

import typer

from fortifai_ray.errors import UserError

if TYPE_CHECKING:
    from fortifai_ray.export.provenance import What

_CHAIN = "STORAGE/STUDY/ID, of which the beginning suffices, or STORAGE/STUDY with --cell and --seed."
_CELL = 'Its cell, as the tables name it ("TCE γ=0.3") or as loss.gamma=0.3.'


def export(
    chain: Annotated[str, typer.Argument(metavar="CHAIN", help=_CHAIN)],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER|hub:NAME", help="A folder, or a repository of the hub.")],
    cell: Annotated[str | None, typer.Option(help=_CELL)] = None,
    seed: Annotated[int | None, typer.Option(help="Its seed.")] = None,
    generation: Annotated[str, typer.Option(metavar="N|last", help="Which generation.")] = "last",
    corpus: Annotated[bool, typer.Option("--corpus", help="Its synthetic corpus in place of its checkpoint.")] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a LoRA chain, the adapter as PEFT reads it, not merged.")
    ] = False,
    both: Annotated[bool, typer.Option("--both", help="Both: FOLDER/model and FOLDER/corpus.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let anybody read a new repository of the hub.")] = False,
    storage: Annotated[str, typer.Option(help="Where a study or an id without a storage is looked for.")] = "runs",
) -> None:
    """Give a checkpoint or a corpus to others, with a card that says how it came to be.

    A checkpoint loads with plain transformers, a corpus (Parquet) with plain datasets.
    """
    from fortifai_ray.export.export import export as run

    if corpus and both:
        raise UserError("--corpus and --both: contradict each other; give --corpus for the corpus alone, or --both")
    if corpus and adapter:
        raise UserError("--corpus and --adapter: contradict each other; --both --adapter exports both")
    what: tuple[What, ...] = ("model", "corpus") if both else ("corpus",) if corpus else ("model",)
    places = run(
        chain,
        to,
        storage=storage,
        cell=cell,
        seed=seed,
        generation=generation,
        what=what,
        public=public,
        adapter=adapter,
        announce=typer.echo,
    )
    for place in places:
        typer.echo(f"exported: {place}")
