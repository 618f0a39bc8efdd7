"""Mistakes in a study of ecosystems: one line with the file, the key and what is right, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study

STUDY: dict[str, Any] = {
    "name": "mistakes",
    "family": {"kind": "gaussian"},
    "generations": 4,
    "ecosystem": {"lineages": {"a": {}, "b": {}}, "mixing": {"graph": "ring"}},
    "collapse": {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
}


def of(mixing: Any = None, order: Any = None, **lineages: Any) -> dict[str, Any]:
    content = {"lineages": lineages or {"a": {}, "b": {}}}
    content |= {} if mixing is None else {"mixing": mixing}
    return {"ecosystem": content | ({} if order is None else {"order": order})}


MIXING = {
    "sum": ([[0.5, 0.4], [0.5, 0.5]], "ecosystem.mixing: the row of a sums to 0.9: its shares must sum to 1"),
    "negative": ([[1.5, -0.5], [0.5, 0.5]], "ecosystem.mixing: the row of a has the share -0.5"),
    "rows": ([[1.0, 0.0]], r"ecosystem.mixing: 2 lineages \(a, b\) need a row each, and there are 1"),
    "columns": ([[1.0], [0.5, 0.5]], "ecosystem.mixing: the row of a has 1 shares, and there are 2 lineages"),
    "nothing to read": (
        [[0, 0], [0.5, 0.5]],
        "ecosystem.mixing: the row of a is 0 throughout, and its regime, replace",
    ),
    "graph": ({"graph": "tree"}, "ecosystem.mixing.graph: input should be 'ring', 'star' or 'complete', not 'tree'"),
    "no graph": ({"own": 0.5}, "ecosystem.mixing.graph: this key is needed and missing"),
    "own": ({"graph": "ring", "own": 1.5}, "ecosystem.mixing.own: input should be less than or equal to 1, not 1.5"),
    "word": ("ring", "ecosystem.mixing: input should be a valid list, not 'ring'"),
    "not finite": ([[float("nan"), 1.0], [0.5, 0.5]], "ecosystem.mixing.*: a finite number is needed, not nan"),
}


@pytest.mark.parametrize(("mixing", "message"), MIXING.values(), ids=MIXING)
def test_a_mixing(mixing: Any, message: str) -> None:
    refused(of(mixing), message)


LINEAGES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"ecosystem": {"lineages": {}}}, "ecosystem.lineages: .* at least 1 item"),
    "a list": ({"ecosystem": {"lineages": ["a", "b"]}}, "ecosystem.lineages: "),
    "a name": (of(**{"first to collapse": {}}), "ecosystem.lineages.*letters .* are allowed"),
    "an unknown key": (
        of(a={}, b={"los": {"kind": "tce"}}),
        "ecosystem.lineages.b: los: unknown key; did you mean loss",
    ),
    "a value": (of(a={}, b={"loss": {"kind": "tce", "gamma": 2}}), "ecosystem.lineages.b: loss.gamma: .*2.0 is not"),
    "a dotted key": (of(a={}, b={"samples_per_generation": 1}), "ecosystem.lineages.b: samples_per_generation: "),
    "frozen": (of(a={}, b={"frozen": "yes please"}), "ecosystem.lineages.b.frozen: true or false is needed"),
    "family": (of(a={}, b={"family": {"kind": "kde"}}), "ecosystem.lineages.b.family.kind: all lineages share it"),
    "dimensions": (of(a={}, b={"family": {"dim": 2}}), "ecosystem.lineages.b.family.dim: all lineages share it"),
    "dimensions, dotted": (of(a={}, b={"family.dim": 2}), "ecosystem.lineages.b.family.dim: all lineages share it"),
    "outcomes": (
        {**of(a={}, b={"family.outcomes": 9}), "family": {"kind": "discrete", "outcomes": 5}},
        "ecosystem.lineages.b.family.outcomes: all lineages share it",
    ),
    "tokens": (
        {**of(a={}, b={"family": {"length": 9}}), "family": {"kind": "ngram"}, "corpus": {"source": "pydoc"}},
        "ecosystem.lineages: all read documents of one family.length",
    ),
    "seed": (of(a={}, b={"seed": 5}), "ecosystem.lineages.b.seed: all lineages share it"),
    "generations": (of(a={}, b={"generations": 5}), "ecosystem.lineages.b.generations: all lineages share it"),
    "nested": (of(a={}, b={"ecosystem": {"lineages": {}}}), "ecosystem.lineages.b.ecosystem.*: all lineages share it"),
    "order": (of(order=["a", "c"]), r"ecosystem.order: there is no lineage 'c' \(lineages: a, b\)"),
    "order twice": (of(order=["a", "a"]), "ecosystem.order: each lineage is named once"),
    "empty": ({"ecosystem": {}}, "ecosystem.lineages: this key is needed and missing"),
    "misspelled": ({"ecosystem": {"lineage": {"a": {}}}}, "ecosystem.lineage: unknown key; did you mean lineages"),
    "vary": (
        {
            **of(a={}, b={"loss": {"kind": "tce", "gamma": 0.5}}),
            "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}]},
        },
        "loss: lineage b has its own: ecosystem.lineages.b.loss is right",
    ),
    "baseline": (
        {**of(a={}, b={"loss": {"kind": "tce", "gamma": 0.5}}), "baseline": {"loss.kind": "cross_entropy"}},
        "baseline: loss: lineage b has its own",
    ),
    "vary of nobody": (
        {"vary": {"ecosystem.lineages.c.loss": [{"kind": "tce", "gamma": 0.9}]}},
        r"ecosystem.lineages.c.loss: there is no lineage 'c' \(known: a, b\)",
    ),
    "vary of a list": (
        {
            "ecosystem": {"lineages": ["a", "b"]},
            "vary": {"ecosystem.lineages.b.loss": [{"kind": "tce", "gamma": 0.9}]},
        },
        r"ecosystem.lineages.b.loss: there is no lineage 'b'$",
    ),
    "search": (
        {
            "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
            "search": {"kind": "boundary", "over": "regime.synthetic_ratio", "low": 0.1, "high": 1.0, "tolerance": 0.1},
        },
        "search: the chains of an ecosystem are not searched",
    ),
    "claim": (
        {
            "claims": [
                {
                    "id": "x",
                    "source": "nobody",
                    "kind": "replication",
                    "statistic": {"kind": "metric", "metric": "lineage_distanc", "at": 1},
                    "where": {"lineage": "a"},
                    "relation": "greater",
                    "value": 0.0,
                }
            ]
        },
        "this study does not measure 'lineage_distanc'; did you mean lineage_distance",
    ),
}


@pytest.mark.parametrize(("changes", "message"), LINEAGES.values(), ids=LINEAGES)
def test_lineages(changes: dict[str, Any], message: str) -> None:
    refused(changes, message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ecosystem.mixing.own=2", "ecosystem.mixing.own: input should be less than or equal to 1"),
        ("ecosystem.lineages.c.loss.kind=tce", "--set: ecosystem.lineages.c.loss.kind: there is no lineage 'c'"),
        ("ecosystem.lineages.b.seed=3", "ecosystem.lineages.b.seed: all lineages share it"),
    ],
)
def test_on_the_command_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_study(STUDY, "s.yaml", [override])


def test_another_vocabulary(tmp_path: Path) -> None:
    """Neither could read what the other writes."""
    content = {
        **STUDY,
        "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 300}},
        "corpus": {"source": "pydoc", "train_tokens": 4096},
        "training": {"batch_size": 8, "block_size": 32},
        "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
        **of(a={}, b={"family": {"model": {"vocab_size": 400}}}),
    }
    with pytest.raises(
        UserError, match=r"^s.yaml: ecosystem.lineages.b.family: its data are not those of a .*written_by"
    ):
        check_study(make_study(content, "s.yaml"), StageStore(tmp_path))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"loss": {"kind": "tce", "gamma": 0.3}}, {"loss.kind": "tce", "loss.gamma": 0.3}),
        ({"regime.synthetic_ratio": 0.2}, {"regime.kind": "mixed", "regime.synthetic_ratio": 0.2}),
        ({"regime": {"synthetic_ratio": 0.2}}, {"regime.kind": "mixed", "regime.human": "fresh"}),
        ({"regime": {"kind": "accumulate"}}, {"regime.kind": "accumulate", "regime.synthetic_ratio": None}),
        ({"family": {"std": 2.0}}, {"family.kind": "gaussian", "family.std": 2.0, "family.dim": 1}),
        (None, {"loss.kind": "cross_entropy", "samples_per_generation": 100}),
    ],
)
def test_keys_of_a_lineage_are_merged(own: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """A section with its kind stands for itself; keys without one go into the recipe's section."""
    regime = {"kind": "mixed", "synthetic_ratio": 0.8, "human": "fresh"}
    study = make_study({**STUDY, "regime": regime, **of(a={}, b=own)}, "s.yaml")
    flat = next(one.recipe.flat() for one in study.members if one.lineage == "b")
    assert {key: flat.get(key) for key in expected} == expected


def test_what_claims_read_of_a_lineage_is_its_own() -> None:
    """Keys of a kind that the ecosystem has and the lineage has not are none of its facts."""
    lineages = {"a": {"loss": {"kind": "cross_entropy"}}, "b": {}}
    content = {**STUDY, "loss": {"kind": "tce", "gamma": 0.9}, "ecosystem": {"lineages": lineages}}
    a, b = (member.facts for member in make_study(content, "s.yaml").members)
    assert (a["loss.kind"], a.get("loss.gamma"), a["ecosystem.place"]) == ("cross_entropy", None, 0)
    assert (b["loss.kind"], b["loss.gamma"], b["ecosystem.draws"]) == ("tce", 0.9, "own")


def test_a_study_as_resolved_is_the_same_study() -> None:
    """``study.yaml`` in the storage is read by whoever opens the folder."""
    content = {**STUDY, "vary": {"ecosystem.lineages.b.loss": [{"kind": "tce", "gamma": 0.5}], "seed": [0, 1]}}
    study = make_study(content, "s.yaml")
    again = make_study(study.resolved(), "study.yaml")
    assert [one.chain_id for one in again.members] == [one.chain_id for one in study.members]
    own = "ecosystem.lineages.b.loss"
    assert again.varied == study.varied == [f"{own}.kind", f"{own}.gamma", "seed", "lineage"]


def refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^s.yaml: .*{message}") as error:
        make_study({**STUDY, **changes}, "s.yaml")
    assert "\n" not in str(error.value)
