"""An ecosystem: lineages, each a model with keys of its own, that train on mixtures of each other's last output.

What a lineage writes is divided among its readers: no two read the same item, and none reads an item twice. So an
ecosystem writes as much as its lineages alone would. A lineage's own share comes first, then the readers by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from fortifai_ray.recipe.pools import Mixture, Pool, span
from fortifai_ray.seeds import LARGEST_SEED, derive_seed
from fortifai_ray.validation import Section, a_name, leaves, put

COMMON = (
    *("family.kind", "corpus", "generations", "seed", "ecosystem", "training.block_size"),
    *("family.dim", "family.outcomes"),  # what a sample is
)
"""Keys of the recipe that all lineages share: their data, their clock, and the blocks in which their text is scored."""
FROZEN = "frozen"
_SOURCES = ("kind", "preset", "path", "hub")  # a section with one of them stands for itself
_ROUNDING = 1e-6

Matrix = list[list[float]]


class Graph(Section):
    """A mixing by a graph: a lineage reads itself by the share ``own``, and its neighbours by equal parts of the rest.

    ``ring``: the one before and the one after it; ``star``: the first lineage reads all others, which read it;
    ``complete``: all others.
    """

    graph: Literal["ring", "star", "complete"] = Field(description="who reads whom")
    own: float = Field(0.5, ge=0.0, le=1.0, description="share of a lineage's synthetic data that it wrote itself")

    def matrix(self, count: int) -> Matrix:
        """The row of each of ``count`` lineages."""
        rows = np.zeros((count, count))
        for row in range(count):
            others = self._neighbours(row, count)
            rows[row, others] = (1.0 - self.own) / max(1, len(others))
            rows[row, row] = self.own if others else 1.0
        return [[float(share) for share in row] for row in rows]

    def _neighbours(self, row: int, count: int) -> list[int]:
        if self.graph == "ring":
            return sorted({(row - 1) % count, (row + 1) % count} - {row})
        if self.graph == "star" and row:
            return [0]
        return [other for other in range(count) if other != row]


def _form(value: Any) -> str:
    return "a graph" if isinstance(value, dict | Graph) else "a matrix"


def _keys(value: Any) -> Any:
    return {} if value is None else value


class Ecosystem(Section):
    """Lineages that train on one another."""

    lineages: dict[Annotated[str, a_name("_-")], Annotated[dict[str, Any], BeforeValidator(_keys)]] = Field(
        min_length=1,
        description="by name, the keys of the recipe that differ in a lineage, merged into the recipe's (a section "
        "with its kind, or a model with its source, stands for itself); frozen: true for an outside model, which is "
        "trained once, on generation 0's human data, and writes anew in each generation",
    )
    order: list[str] = Field(
        [],
        validate_default=True,
        description="the lineages in the order of the mixing's rows; left out: as they stand in the file",
    )
    mixing: Annotated[Annotated[Graph, Tag("a graph")] | Annotated[Matrix, Tag("a matrix")], Discriminator(_form)] = (
        Field(
            Graph(graph="complete"),
            validate_default=True,
            description="a row for each lineage: its shares of the lineages' last output; or a graph",
        )
    )
    draws: Literal["own", "shared"] = Field(
        "own",
        description="own: each lineage draws by the seed and its name (one without others as a chain does); shared: "
        "all draw by the seed alone, so that lineages alike are the same",
    )

    @field_validator("order")
    @classmethod
    def _names_each_once(cls, order: list[str], info: ValidationInfo) -> list[str]:
        names = list(info.data.get("lineages", order))
        for name in order:
            if name not in names:
                raise ValueError(f"there is no lineage {name!r} (lineages: {', '.join(names)})")
        if order and sorted(order) != sorted(names):
            raise ValueError(f"each lineage is named once (lineages: {', '.join(names)})")
        return order or names

    @field_validator("mixing", mode="before")
    @classmethod
    def _rows_stand_in_order(cls, mixing: Any, info: ValidationInfo) -> Any:
        names = info.data.get("order", ())
        if isinstance(mixing, dict) and mixing and {*mixing} <= {*names}:
            raise ValueError(
                f"its rows have no names: a list is needed, with a row for each lineage in their order "
                f"({', '.join(names)}), e.g. {[[float(one == name) for one in names] for name in names]}"
            )
        return mixing

    @field_validator("mixing")
    @classmethod
    def _rows_are_shares(cls, mixing: Graph | Matrix, info: ValidationInfo) -> Graph | Matrix:
        names: Sequence[str] = info.data.get("order", ())
        if isinstance(mixing, Graph) or not names:
            return mixing
        if len(mixing) != len(names):
            need = "lineage needs a row" if len(names) == 1 else "lineages need a row each"
            raise ValueError(
                f"{len(names)} {need} ({', '.join(names)}), and there are {len(mixing)}; a graph, e.g. "
                "{graph: complete}, fits any number"
            )
        for name, row in zip(names, mixing, strict=True):
            if len(row) != len(names):
                raise ValueError(f"the row of {name} has {len(row)} shares, and there are {len(names)} lineages")
            if min(row) < 0:
                raise ValueError(f"the row of {name} has the share {min(row):g}: shares are 0 or more")
            if any(row) and abs(sum(row) - 1) > _ROUNDING:
                raise ValueError(f"the row of {name} sums to {sum(row):g}: its shares must sum to 1")
        return mixing

    def frozen(self, name: str | None) -> bool:
        """Whether a lineage is an outside model."""
        return name is not None and bool(self.lineages[name].get(FROZEN, False))

    def own(self, name: str) -> dict[str, Any]:
        """The keys of the recipe that a lineage sets, as nested sections."""
        return put({}, {key: value for key, value in self.lineages[name].items() if key != FROZEN})

    def merged(self, content: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The content of a lineage's recipe; ``content`` is the ecosystem's."""
        base = {key: value for key, value in content.items() if key != "ecosystem"}
        return _merged(base, self.own(name))

    def sets(self, key: str) -> str | None:
        """The first lineage that has a dotted key, a part of it or the section around it as its own; None: none has."""
        for name in self.order:
            for own in leaves(self.own(name)):
                if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}."):
                    return name
        return None

    def differing(self, still: Mapping[str, bool]) -> list[str]:
        """The dotted keys that lineages have as their own, without the regime of those that stay as they are."""
        own = {(name, key) for name in self.order for key in leaves(self.own(name))}
        return sorted({key for name, key in own if not (still[name] and key.startswith("regime"))})

    def seed_of(self, name: str, seed: int) -> int:
        """The seed that a lineage draws by, where the recipe's is ``seed``."""
        if self.draws == "shared" or len(self.lineages) == 1:
            return seed
        return derive_seed(seed, "lineage", name) % LARGEST_SEED

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By reader, the share of each lineage that it reads: its own first, then by name."""
        names, mixing = self.order, self.mixing
        rows = mixing.matrix(len(names)) if isinstance(mixing, Graph) else mixing
        read = {name: dict(zip(names, row, strict=True)) for name, row in zip(names, rows, strict=True)}
        return {
            name: {other: row[other] for other in sorted(row, key=lambda one: (one != name, one)) if row[other] > 0}
            for name, row in read.items()
        }


def common_key(own: Mapping[str, Any]) -> str | None:
    """The first key of a lineage that all lineages must share; None where it has none."""
    known = list(leaves(own))
    return next((key for key in COMMON if any(one == key or one.startswith(f"{key}.") for one in known)), None)


def lineage_of(ecosystem: Ecosystem | None, name: str | None) -> dict[str, Any]:
    """The name of a lineage, what it reads, and whether it is frozen; nothing of a chain's one model."""
    if ecosystem is None or name is None:
        return {}
    return {"name": name, "reads": ecosystem.shares[name], "frozen": ecosystem.frozen(name)}


Shares = Mapping[str | None, Mapping[str | None, float]]
Sizes = Mapping[str | None, float]
"""Units of synthetic data that each reader needs; lineages that need none are not in it."""


def _parts(row: Mapping[str | None, float], size: float) -> dict[str | None, float]:
    """Units that a reader takes of each writer: whole ones whose sum is its size, rounded up."""
    if len(row) == 1:
        return dict.fromkeys(row, size)
    ends = np.cumsum(list(row.values())) * size
    whole = np.append(np.floor(ends[:-1] + 0.5 - _ROUNDING), np.ceil(size - _ROUNDING))
    return {writer: float(part) for writer, part in zip(row, np.diff(whole, prepend=0.0), strict=True)}


def demands(shares: Shares, sizes: Sizes) -> dict[str | None, float]:
    """Units that each lineage has to write for its readers."""
    asked: dict[str | None, float] = {}
    for reader in sorted(sizes, key=str):
        for writer, part in _parts(shares[reader], sizes[reader]).items():
            asked[writer] = asked.get(writer, 0.0) + part
    return asked


@dataclass(frozen=True)
class Writing:
    """What a model is to read and to write, known before anything is computed.

    Attributes:
        needs: by generation, units of synthetic data for its own next training set.
        asked: by generation, units that it writes for its readers.
        frozen: whether it is trained once.
        beside: whether there are other lineages, with which it is compared.
    """

    needs: Sequence[float]
    asked: Sequence[float]
    frozen: bool = False
    beside: bool = False


def writing(ecosystem: Ecosystem | None, needs: Mapping[str | None, Sequence[float]]) -> dict[str | None, Writing]:
    """What each lineage, or a chain's one model, is to write; ``needs`` are those of each for itself."""
    if ecosystem is None:
        return {name: Writing(own, own) for name, own in needs.items()}
    still = {name: ecosystem.frozen(name) for name in needs}
    read = {name: [0.0] * len(own) if still[name] else own for name, own in needs.items()}
    shares = cast(Shares, ecosystem.shares)
    each = [
        demands(shares, {name: size for name, size in zip(read, sizes, strict=True) if size})
        for sizes in zip(*read.values(), strict=True)
    ]
    return {
        name: Writing(own, [asked.get(name, 0.0) for asked in each], still[name], len(needs) > 1)
        for name, own in read.items()
    }


def mixed(reader: str | None, shares: Shares, sizes: Sizes, pools: Mapping[str | None, Pool]) -> Pool:
    """The synthetic data of one reader: ``sizes[reader]`` units, to the nearest item, in the shares of its row.

    Its first items have these shares, too, however many are taken. A writer's pool that falls short of what is asked of
    it is divided in the same proportions.
    """
    row = shares[reader]
    if list(row) == [reader] and not any(reader in shares[other] for other in sizes if other != reader):
        return pools[reader]
    asked, found, places = demands(shares, sizes), list[tuple[Pool, np.ndarray]](), list[np.ndarray]()
    for writer, part in _parts(row, sizes[reader]).items() if reader in sizes else ():
        pool = pools[writer]
        scale = min(1.0, pool.size / asked[writer]) if asked[writer] else 0.0
        before = scale * _before(reader, writer, shares, sizes)
        items = span(pool, before, before + scale * part)
        lengths = pool.sizes[items]
        found.append((pool, items))
        places.append((np.cumsum(lengths) - lengths / 2) / row[writer])
    order = np.argsort(np.concatenate([np.zeros(0), *places]), kind="stable")
    source = np.repeat(np.arange(len(found)), [len(items) for _, items in found])
    items = np.concatenate([np.zeros(0, np.int64), *(items for _, items in found)])
    return Mixture.of([pool for pool, _ in found], source[order], items[order])


def _before(reader: str | None, writer: str | None, shares: Shares, sizes: Sizes) -> float:
    """Units of a writer's output that other readers have before this one: the writer itself, then readers by name."""
    readers = sorted((one for one in sizes if writer in shares[one]), key=lambda one: (one != writer, str(one)))
    earlier = readers[: readers.index(reader)]
    return sum((_parts(shares[one], sizes[one])[writer] for one in earlier), 0.0)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in own.items():
        inner = base.get(key)
        stands = not isinstance(value, Mapping) or any(name in value for name in _SOURCES)
        result[key] = value if stands or not isinstance(inner, Mapping) else _merged(inner, value)
    return result
