"""Ecosystems of array families: their numbers are those of a loop written here, whatever the order of the lineages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.chain.cohort import CohortTask, cohort_rows, cohorts, run_cohort
from fortifai_ray.chain.recursion import Lineage, together
from fortifai_ray.families.analytic.base import Streams, choose
from fortifai_ray.recipe.family import Collapsed, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.recipe.regimes import Replace
from fortifai_ray.seeds import LARGEST_SEED, derive_seed
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import NotStored, Stage, StageStore
from fortifai_ray.study.study import Study, make_study

GAUSSIAN: dict[str, Any] = {"kind": "gaussian", "dim": 1, "mean": 0.5}
DISCRETE: dict[str, Any] = {"kind": "discrete", "outcomes": 8, "probabilities": "zipf"}
SEEDS, GENERATIONS = [3, 11], 5


def study(family: dict[str, Any] = GAUSSIAN, **keys: Any) -> Study:
    metric = "trace_ratio" if family["kind"] == "gaussian" else "kl_divergence"
    content: dict[str, Any] = {
        "name": "ecosystem",
        "family": family,
        "samples_per_generation": 20,
        "generations": GENERATIONS,
        "vary": {"seed": SEEDS},
        "collapse": {"metric": metric, "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
    }
    return make_study({**content, **keys}, "ecosystem.yaml")


def rows(asked: Study, folder: Path) -> pl.DataFrame:
    store = StageStore(folder)
    tables = [cohort_rows(task, run_cohort(task, Steps(store))) for task in cohorts(asked.chains)]
    return pl.concat(tables, how="diagonal_relaxed").sort("seed", "generation", maintain_order=True)


def of(table: pl.DataFrame, lineage: str | None, metric: str) -> np.ndarray:
    """(seeds, generations) of one lineage."""
    own = table.filter(pl.col("lineage").eq_missing(pl.lit(lineage))).sort("seed", "generation")
    return own[metric].to_numpy().reshape(len(SEEDS), -1)


def drawing(name: str, seed: int) -> int:
    return derive_seed(seed, "lineage", name) % LARGEST_SEED


class Loop:
    """The recursion under ``replace`` again, one chain at a time, in NumPy: only the random numbers are shared."""

    def __init__(self, names: list[str], mixing: list[list[float]], sizes: dict[str, int], seed: int) -> None:
        self.names, self.mixing, self.sizes = names, mixing, sizes
        self.streams = {name: drawing(name, seed) for name in names}

    def run(self) -> dict[str, list[np.ndarray]]:
        data = {name: self.human(name) for name in self.names}
        fitted: dict[str, list[Any]] = {name: [] for name in self.names}
        for g in range(GENERATIONS):
            for name in self.names:
                fitted[name].append(self.fit(data[name]))
            written = {name: self.write(name, fitted[name][-1], g) for name in self.names}
            data = {name: self.read(name, written) for name in self.names}
        return fitted

    def counts(self, reader: str) -> dict[str, int]:
        row = self.mixing[self.names.index(reader)]
        return {writer: round(share * self.sizes[reader]) for writer, share in zip(self.names, row, strict=True)}

    def read(self, reader: str, written: dict[str, np.ndarray]) -> np.ndarray:
        """Each writer gives its own part first, then the others' by name, none twice."""
        parts = []
        for writer in self.names:
            line = sorted(self.names, key=lambda name: (name != writer, name))
            before = sum(self.counts(one)[writer] for one in line[: line.index(reader)])
            parts.append(written[writer][before : before + self.counts(reader)[writer]])
        return np.concatenate(parts)

    def human(self, name: str) -> np.ndarray:
        drawn = Streams((self.streams[name],), -1).normal("human", (self.sizes[name], 1))
        return GAUSSIAN["mean"] + drawn[0, :, 0]

    def fit(self, data: np.ndarray) -> Any:
        return data.mean(), data.var()

    def write(self, name: str, model: Any, g: int) -> np.ndarray:
        count = sum(self.counts(reader)[name] for reader in self.names)
        return model[0] + model[1] ** 0.5 * Streams((self.streams[name],), g).normal("noise", (count, 1))[0, :, 0]


class DiscreteLoop(Loop):
    def human(self, name: str) -> np.ndarray:
        truth = 1.0 / np.arange(1, DISCRETE["outcomes"] + 1)
        uniforms = Streams((self.streams[name],), -1).uniform("human", (self.sizes[name],))
        return choose(uniforms, truth[None] / truth.sum())[0]

    def fit(self, data: np.ndarray) -> Any:
        return np.bincount(data, minlength=DISCRETE["outcomes"]) / len(data)

    def write(self, name: str, model: Any, g: int) -> np.ndarray:
        count = sum(self.counts(reader)[name] for reader in self.names)
        return choose(Streams((self.streams[name],), g).uniform("outcome", (count,)), model[None])[0]


MIXING = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_numbers_are_those_of_another_loop(kind: str, tmp_path: Path) -> None:
    """Three lineages of different sizes under a mixing without symmetry. Sums run in other orders, so bits differ."""
    family, loop = (GAUSSIAN, Loop) if kind == "gaussian" else (DISCRETE, DiscreteLoop)
    names, sizes = ["b", "a", "c"], {"b": 20, "a": 40, "c": 60}
    own = {name: {"samples_per_generation": sizes[name]} for name in names}
    table = rows(study(family, ecosystem={"lineages": own, "mixing": MIXING}), tmp_path)
    for place, seed in enumerate(SEEDS):
        fitted = loop(names, MIXING, sizes, seed).run()
        for name in names:
            if kind == "gaussian":
                expected = [variance for _, variance in fitted[name]]
                measured = of(table, name, "trace_ratio")[place]
            else:
                expected = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in fitted[name]]
                measured = of(table, name, "entropy")[place]
            np.testing.assert_allclose(measured, expected, rtol=1e-10)


def test_the_order_of_the_lineages_changes_no_number(tmp_path: Path) -> None:
    """The same lineages and shares in another order: other rows of the mixing, and the same bits."""
    ways = []
    for order in ([0, 1, 2], [2, 0, 1]):
        names = ["a", "b", "c"]
        lineages = {names[i]: {"loss": {"kind": "tce", "gamma": 0.8}} if i == 1 else {} for i in order}
        mixing = [[MIXING[row][column] for column in order] for row in order]
        table = rows(study(ecosystem={"lineages": lineages, "mixing": mixing}), tmp_path / str(order[0]))
        ways.append([of(table, name, "trace_ratio") for name in names] + [of(table, "b", "lineage_distance")])
    for one, other in zip(*ways, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("regime", ["replace", "accumulate", "accumulate_subsample", "mixed", "incremental"])
def test_one_lineage_is_a_chain(regime: str, tmp_path: Path) -> None:
    """Bit for bit, under every regime; so are lineages that read nothing of each other where draws are shared."""
    kind: dict[str, Any] = {"kind": regime}
    if regime == "mixed":
        kind["synthetic_ratio"] = 0.7
    chain = of(rows(study(regime=kind), tmp_path), None, "trace_ratio")
    alone = rows(study(regime=kind, ecosystem={"lineages": {"solo": {}}}), tmp_path)
    assert (of(alone, "solo", "trace_ratio") == chain).all()
    apart = {"lineages": {"a": None, "b": None}, "mixing": {"graph": "complete", "own": 1.0}, "draws": "shared"}
    beside = rows(study(regime=kind, ecosystem=apart), tmp_path)
    assert (of(beside, "a", "trace_ratio") == chain).all()
    assert (of(beside, "b", "trace_ratio") == chain).all()
    assert not of(beside, "a", "lineage_distance").any()


def test_lineages_alike_draw_differently(tmp_path: Path) -> None:
    table = rows(study(ecosystem={"lineages": {"a": {}, "b": {}}}), tmp_path)
    assert (of(table, "a", "trace_ratio") != of(table, "b", "trace_ratio")).all()
    assert (of(table, "a", "lineage_distance") == of(table, "b", "lineage_distance")).all()


def test_frozen_and_human_only_lineages(tmp_path: Path) -> None:
    """A frozen one is trained once, a human-only one on the same data again; both are read, and never change."""
    lineages = {"a": {}, "web": {"frozen": True}, "press": {"regime": {"kind": "mixed", "synthetic_ratio": 0.0}}}
    mixing = [[0.2, 0.5, 0.3], [0, 0, 0], [0, 0, 0]]
    table = rows(study(ecosystem={"lineages": lineages, "mixing": mixing}), tmp_path)
    for still in ("web", "press"):
        values = of(table, still, "trace_ratio")
        assert (values == values[:, :1]).all()
        assert not of(table, still, "synthetic_size").any()
    assert (of(table, "a", "synthetic_size") == [0, 20, 20, 20, 20]).all()
    assert len(set(of(table, "a", "trace_ratio")[0])) == GENERATIONS


@pytest.mark.parametrize(("size", "row"), [(20, [0.5, 0.25, 0.25]), (10, [1 / 3, 1 / 3, 1 / 3]), (7, [0.6, 0.4, 0.0])])
def test_sizes_are_exact(size: int, row: list[float], tmp_path: Path) -> None:
    """Shares that leave no whole numbers still fill the training set."""
    mixing = [row, [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]]
    lineages = {"a": {}, "b": {}, "c": {"regime": {"kind": "mixed", "synthetic_ratio": 0.37}}}
    table = rows(study(samples_per_generation=size, ecosystem={"lineages": lineages, "mixing": mixing}), tmp_path)
    for name in ("a", "b"):
        assert (of(table, name, "synthetic_size")[:, 1:] == size).all()
    assert (of(table, "c", "synthetic_size")[:, 1:] == round(0.37 * size)).all()


@pytest.mark.parametrize("regime", ["accumulate", "accumulate_subsample", "incremental"])
def test_regimes_draw_from_mixtures(regime: str, tmp_path: Path) -> None:
    """As many synthetic samples as a chain has, generation by generation."""
    kind = {"kind": regime}
    chain = of(rows(study(regime=kind), tmp_path), None, "synthetic_size")
    table = rows(study(regime=kind, ecosystem={"lineages": {"a": {}, "b": {}, "c": {}}, "mixing": MIXING}), tmp_path)
    for name in ("a", "b", "c"):
        if regime == "accumulate_subsample":  # drawn at random, from as many
            continue
        assert (of(table, name, "synthetic_size") == chain).all()


def test_an_ecosystem_is_replayed_from_the_store(tmp_path: Path) -> None:
    asked = study(ecosystem={"lineages": {"a": {}, "b": {}}})
    store = StageStore(tmp_path)
    [task] = cohorts(asked.chains)
    with pytest.raises(NotStored):
        run_cohort(task, Steps(store, replay=True))
    first = cohort_rows(task, run_cohort(task, Steps(store)))
    again = cohort_rows(task, run_cohort(task, Steps(store, replay=True)))
    assert again.drop("reused", "computed_seconds").equals(first.drop("reused", "computed_seconds"))


def test_a_plain_chain_keeps_its_identity() -> None:
    """The key that it lacks is in no hash."""
    plain = study()
    assert "ecosystem" not in plain.chains[0].recipe.model_dump(mode="json")
    assert tuple(plain.members) == plain.chains
    assert plain.chains[0].lineage is None
    assert CohortTask(plain.chains, plain.chains[0].recipe).key.inputs.keys() == {"recipe", "family", "loss", "seeds"}


def test_the_order_of_lineages_is_part_of_the_identity() -> None:
    """A star's hub is its first lineage, and a mapping is hashed in no order."""
    ids = {
        study(ecosystem={"lineages": {name: {} for name in names}, "mixing": {"graph": "star"}}).chains[0].chain_id
        for names in (("a", "b", "c"), ("b", "a", "c"))
    }
    assert len(ids) == 2


@dataclass
class Toy:
    """A family whose model is the number of samples that it was trained on; it may diverge in a generation."""

    name: str
    diverges_at: int | None = None
    trained: list[dict[str, list[int]]] = field(default_factory=list)
    compared: float = 0.0

    def human(self) -> Human:
        return Human(Pool(f"{self.name} human", np.ones(10), synthetic=False), np.arange(10), 10)

    def init(self, previous: Stage | None, generation: int) -> Stage:
        return previous or Stage("start", Path(), {})

    def fit(self, data: TrainingSet, loss: Any, *, start_from: Stage, generation: int) -> Stage:
        if generation == self.diverges_at:
            raise Collapsed("diverged")
        self.trained.append({draw.pool.stage: draw.items.tolist() for draw in data.draws})
        return Stage(f"{self.name} {generation}", Path(), {"count": data.human_size + data.synthetic_size})

    def evaluate(self, model: Stage, *, generation: int) -> Stage:
        return Stage(f"scores of {model.hash}", Path(), {})

    def generate(self, model: Stage, size: float, *, generation: int) -> Synthetic[Stage]:
        name = f"{self.name} wrote {generation}"
        return Synthetic(Stage(name, Path(), {}), Pool(name, np.ones(int(size)), synthetic=True))

    def curate(
        self, written: Synthetic[Stage], size: float, *, model: Stage, verifier: Stage, generation: int
    ) -> Synthetic[Stage]:
        return written

    def compare(self, model: Stage, written: Synthetic[Stage], others: Any) -> None:
        return None


def toys(diverges: dict[str, int], stop: dict[str, int] | None = None) -> tuple[dict[str, Toy], list[Any]]:
    recipe = Recipe(family={"kind": "toy"}, regime=Replace(), generations=4)
    families = {name: Toy(name, diverges.get(name)) for name in ("a", "b")}
    ends = {name: (stop or {}).get(name, 99) for name in families}
    shares = {"a": {"a": 0.5, "b": 0.5}, "b": {"b": 1.0}}
    lineages: list[Lineage[Stage]] = [
        Lineage(recipe, families[name], lambda history, at=ends[name]: len(history) > at, name, shares[name])  # type: ignore[arg-type, misc]
        for name in families
    ]
    return families, list(together(lineages))


def test_readers_of_a_lineage_that_diverged_read_its_last_output() -> None:
    families, generations = toys({"b": 2})
    assert [(one.lineage, one.number) for one in generations if one.collapse_reason] == [("b", 2)]
    assert max(one.number for one in generations if one.lineage == "a") == 3
    assert families["a"].trained[2]["b wrote 1"] == list(range(10, 15))
    assert families["a"].trained[3]["b wrote 1"] == list(range(5))  # which b would have read itself
    assert len(families["a"].trained[3]["a wrote 2"]) == 5


def test_readers_of_a_lineage_that_wrote_nothing_end_too() -> None:
    _, generations = toys({"b": 0})
    reasons = {one.lineage: one.collapse_reason for one in generations if one.collapse_reason}
    assert reasons == {"b": "diverged", "a": "lineage b, which it reads, has written nothing"}
    assert max(one.number for one in generations) == 1


@pytest.mark.parametrize(("stop", "last"), [({"a": 1, "b": 2}, 2), ({"a": 0}, 3), ({"a": 0, "b": 0}, 0)])
def test_a_chain_ends_when_every_lineage_is_decided(stop: dict[str, int], last: int) -> None:
    """A decided one goes on, since the other reads it."""
    _, generations = toys({}, stop)
    for name in ("a", "b"):
        assert max(one.number for one in generations if one.lineage == name) == last


def test_no_two_readers_read_the_same_item() -> None:
    """b's output is b's own first ten, then a's five."""
    families, _ = toys({})
    assert families["b"].trained[1]["b wrote 0"] == list(range(10))
    assert families["a"].trained[1]["b wrote 0"] == list(range(10, 15))
    assert families["a"].trained[1]["a wrote 0"] == list(range(5))
