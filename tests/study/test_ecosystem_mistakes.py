"""Mistakes in a study of ecosystems: one line with the file, the key and what is right, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.results.cells import chains_table
from fortifai_ray.statistics.ratios import pair_with_baseline
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
    "rows": ([[1.0, 0.0]], r"ecosystem.mixing: 2 lineages need a row each \(a, b\), and there are 1; a graph"),
    "by names": (
        {"a": {"a": 0.7, "b": 0.3}, "b": {"b": 1.0}},
        r"ecosystem.mixing: its rows have no names: .* in their order \(a, b\), e.g. \[\[1.0, 0.0\], \[0.0, 1.0\]\]",
    ),
    "columns": ([[1.0], [0.5, 0.5]], "ecosystem.mixing: the row of a has 1 shares, and there are 2 lineages"),
    "nothing to read": (
        [[0, 0], [0.5, 0.5]],
        "ecosystem.mixing: the row of a is 0 throughout, and its regime, replace",
    ),
    "graph": ({"graph": "tree"}, "ecosystem.mixing.graph: there is no 'tree' \\(known: ring, star, complete\\)"),
    "no graph": ({"own": 0.5}, "ecosystem.mixing.graph: this key is needed and missing"),
    "own": ({"graph": "ring", "own": 1.5}, "ecosystem.mixing.own: a number less than or equal to 1 is needed, not 1.5"),
    "word": ("ring", "ecosystem.mixing: a list is needed, not 'ring'"),
    "not finite": ([[float("nan"), 1.0], [0.5, 0.5]], "ecosystem.mixing.*: a finite number is needed, not nan"),
}


@pytest.mark.parametrize(("mixing", "message"), MIXING.values(), ids=MIXING)
def test_a_mixing(mixing: Any, message: str) -> None:
    refused(of(mixing), message)


LINEAGES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"ecosystem": {"lineages": {}}}, "ecosystem.lineages: at least 1 is needed, not 0"),
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
    "a baseline's lineage": ({"baseline": {"lineage": "a"}}, "baseline: lineage: a lineage is compared with that of"),
    "a baseline's matrix": (
        {
            "ecosystem": {"lineages": {"a": {}, "b": {}}, "mixing": [[0.5, 0.5], [0.5, 0.5]]},
            "baseline": {"ecosystem.lineages": {"a": {}}},
        },
        r"baseline: ecosystem.mixing: 1 lineage needs a row \(a\), and there are 2; a graph, .* fits any number",
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
        ("ecosystem.mixing.own=2", "ecosystem.mixing.own: a number less than or equal to 1 is needed, not 2"),
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


TEXT: dict[str, Any] = {
    **STUDY,
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 300}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "training": {"batch_size": 8, "block_size": 32},
    "decoding": {"context_tokens": 8, "max_new_tokens": 16},
    "evaluation": {"sample_texts": 0},
    "engine": {"kind": "huggingface"},
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
    "generations": 3,
}
GREEDY = {"decoding": {"context_tokens": 8, "max_new_tokens": 2, "temperature": 0.0}}
REWRITING = {
    "decoding": {"context_tokens": 8, "max_new_tokens": 16, "prompts": "training_set"},
    "training": {"batch_size": 8, "block_size": 32, "pack": "running"},
}
STAR = {"lineages": {"hub": {}, "b": {}, "c": {}, "d": {}}, "mixing": {"graph": "star"}}
HUMAN = {"regime": {"kind": "mixed", "synthetic_ratio": 0.0}}
DETECTS = {"curation": {"kind": "detector"}, "regime": {"kind": "mixed", "synthetic_ratio": 0.5}}
# What a lineage is asked for is what its readers need, itself among them if it reads itself.
WRITES: dict[str, tuple[dict[str, Any], str | None]] = {
    "a chain has contexts enough": (GREEDY, None),
    "a ring, too": ({**GREEDY, "ecosystem": {"lineages": {"a": {}, "b": {}}}}, None),
    "a hub is asked for the half of four": (
        {**GREEDY, "ecosystem": STAR},
        "ecosystem.lineages.hub: decoding: generation 0 is asked for 4,096 rows",
    ),
    "one that others alone read": (
        {**GREEDY, "ecosystem": {"lineages": {"a": {}, "b": {}, "c": HUMAN}, "mixing": [[0, 0, 1]] * 2 + [[0, 0, 0]]}},
        "ecosystem.lineages.c: decoding: generation 0 is asked for 4,096 rows",
    ),
    "one that nobody reads writes to be compared": (
        {
            "decoding": {**GREEDY["decoding"], "context_tokens": 1, "max_new_tokens": 4},
            "ecosystem": {"lineages": {"a": {}, "b": {"frozen": True}}, "mixing": [[1, 0], [0, 0]]},
        },
        "ecosystem.lineages.a: decoding: generation 0 is asked for 1,024 rows",
    ),
    "a text is rewritten once": (REWRITING, None),
    "by a ring, too": ({**REWRITING, "ecosystem": {"lineages": {"a": {}, "b": {}}}}, None),
    "a hub rewrites it for others": (
        {**REWRITING, "ecosystem": STAR},
        "ecosystem.lineages.hub: decoding.prompts: generation 0 rewrites .* as 255 rows, and 512 are asked for",
    ),
    "an outside model rewrites its own again": (
        {
            **REWRITING,
            "ecosystem": {"lineages": {"a": {}, "b": {"frozen": True}}, "mixing": [[0, 1], [0, 0]]},
        },
        None,
    ),
    "a detector of what nobody reads": (
        {"ecosystem": {"lineages": {"a": {}, "b": DETECTS}, "mixing": [[1, 0], [1, 0]]}},
        None,
    ),
    "a detector of nothing": (
        {**DETECTS, "regime": {"kind": "mixed", "synthetic_ratio": 0.0}},
        "curation.kind: a detector learns from .* it has 128 and 1: ",
    ),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize(("changes", "message"), WRITES.values(), ids=WRITES)
def test_what_a_lineage_writes_is_what_its_readers_need(
    changes: dict[str, Any], message: str | None, texts: StageStore
) -> None:
    content = {key: value for key, value in TEXT.items() if key != "ecosystem"} | changes
    if message is None:
        check_study(make_study(content, "s.yaml"), texts)
        return
    with pytest.raises(UserError, match=f"^s.yaml: {message}"):
        check_study(make_study(content, "s.yaml"), texts)


BASELINES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # what varies, the baseline as it is written, and as the tables have it
    "a number of lineages": (
        {"ecosystem.lineages": [{"a": {}}, {"a": {}, "b": {}}]},
        {"ecosystem.lineages": {"a": {}}},
        {"ecosystem.order": '["a"]'},
    ),
    "a whole ecosystem": (
        {"ecosystem": [{"lineages": {"a": {}}}, {"lineages": {"a": {}, "b": {}}, "mixing": {"graph": "ring"}}]},
        {"ecosystem": {"lineages": {"a": {}}}},
        {"ecosystem.order": '["a"]', "ecosystem.mixing.graph": "complete"},
    ),
    "no ecosystem": (
        {"ecosystem": [None, {"lineages": {"a": {}, "b": {}}}]},
        {"ecosystem": None},
        {"ecosystem": None},
    ),
    "a matrix": (
        {"ecosystem.mixing": [[[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]]},
        {"ecosystem.mixing": [[1, 0], [0, 1]]},
        {"ecosystem.mixing": "[[1.0, 0.0], [0.0, 1.0]]"},
    ),
    "a lineage's loss": (
        {"ecosystem.lineages.b.loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}]},
        {"ecosystem.lineages.b.loss": {"kind": "tce", "gamma": 0.3}},
        {"ecosystem.lineages.b.loss.kind": "tce", "ecosystem.lineages.b.loss.gamma": 0.3},
    ),
    "a loss of all": (
        {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}]},
        {"loss": {"kind": "tce", "gamma": 0.3}},
        {"loss.kind": "tce", "loss.gamma": 0.3},
    ),
}


@pytest.mark.parametrize(("vary", "baseline", "expected"), BASELINES.values(), ids=BASELINES)
def test_a_baseline_may_be_a_section(vary: dict[str, Any], baseline: dict[str, Any], expected: dict[str, Any]) -> None:
    """As tables have it; and each study has a cell that is the baseline."""
    ecosystem = {} if "ecosystem" in vary else {"ecosystem": STUDY["ecosystem"]}
    content = {key: value for key, value in STUDY.items() if key != "ecosystem"} | ecosystem
    study = make_study({**content, "vary": {**vary, "seed": [0, 1]}, "baseline": baseline}, "s.yaml")
    assert expected.items() <= study.baseline.items()
    assert make_study(study.resolved(), "study.yaml").baseline == study.baseline
    table = chains_table(study.members)
    paired = pair_with_baseline(table, study.varied, study.baseline)
    assert paired["baseline_chain_id"].null_count() == 0
    assert {*paired["baseline_chain_id"]} < {*paired["chain_id"]}


def test_lineages_of_several_models_have_partners_of_their_names_alone() -> None:
    """c has none, where a and b stand in the baseline; the first and the last to collapse have those of its name."""
    both, three = {"a": {}, "b": {}}, {"a": {}, "b": {}, "c": {}}
    vary = {"ecosystem.lineages": [both, three], "seed": [0]}
    study = make_study({**STUDY, "vary": vary, "baseline": {"ecosystem.lineages": both}}, "s.yaml")
    table = chains_table(one for chain in study.chains for one in (*chain.members, *chain.wholes))
    paired = pair_with_baseline(table, study.varied, study.baseline)
    names = dict(table.select("chain_id", "lineage").iter_rows())
    partners = {(names[one], names.get(other)) for one, other in paired.iter_rows()}
    assert partners == {(name, name) for name in ("a", "b", "first to collapse", "last to collapse")} | {("c", None)}


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
