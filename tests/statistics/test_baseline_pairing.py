"""Which chain is whose baseline."""

import polars as pl

from fortifai_ray.statistics.ratios import outside_baseline, pair_with_baseline

CROSS_ENTROPY = {"loss.kind": "cross_entropy"}


def partners(chains: pl.DataFrame, varied: list[str], baseline: dict[str, object]) -> dict[str, str | None]:
    paired = pair_with_baseline(chains, varied, baseline)
    return dict(zip(paired["chain_id"], paired["baseline_chain_id"], strict=True))


def test_the_baseline_replaces_its_section_and_nothing_else() -> None:
    varied = ["loss.kind", "loss.gamma", "loss.schedule.start", "regime.synthetic_ratio", "losses", "seed"]
    assert outside_baseline(varied, CROSS_ENTROPY) == ["regime.synthetic_ratio", "losses"]


def test_partners_share_seed_and_ratio_and_nulls_are_equal() -> None:
    chains = pl.DataFrame(
        [
            ("ce-0-0", "cross_entropy", None, None, 0),
            ("ce-0-1", "cross_entropy", None, None, 1),
            ("ce-5-0", "cross_entropy", None, 0.5, 0),
            ("tce-0-0", "tce", 0.3, None, 0),
            ("tce-5-0", "tce", 0.3, 0.5, 0),
            ("tce-5-1", "tce", 0.3, 0.5, 1),
        ],
        schema=["chain_id", "loss.kind", "loss.gamma", "regime.synthetic_ratio", "seed"],
        orient="row",
    )
    assert partners(chains, ["loss.kind", "loss.gamma", "regime.synthetic_ratio", "seed"], CROSS_ENTROPY) == {
        "ce-0-0": "ce-0-0",
        "ce-0-1": "ce-0-1",
        "ce-5-0": "ce-5-0",
        "tce-0-0": "ce-0-0",
        "tce-5-0": "ce-5-0",
        "tce-5-1": None,
    }


def test_within_the_section_the_same_is_preferred_then_the_plain_one() -> None:
    chains = pl.DataFrame(
        [
            ("ce-plain", "cross_entropy", None),
            ("ce-smooth", "cross_entropy", 0.1),
            ("tce-smooth", "tce", 0.1),
            ("tce-other", "tce", 0.2),
        ],
        schema=["chain_id", "loss.kind", "loss.smoothing"],
        orient="row",
    ).with_columns(seed=0)
    assert partners(chains, ["loss.kind", "loss.smoothing"], CROSS_ENTROPY) == {
        "ce-plain": "ce-plain",
        "ce-smooth": "ce-smooth",
        "tce-smooth": "ce-smooth",
        "tce-other": "ce-plain",
    }


def test_two_that_fit_equally_well_are_none() -> None:
    chains = pl.DataFrame(
        [("a", "cross_entropy", 0.1), ("b", "cross_entropy", 0.2), ("c", "tce", None)],
        schema=["chain_id", "loss.kind", "loss.smoothing"],
        orient="row",
    ).with_columns(seed=0)
    assert partners(chains, ["loss.kind", "loss.smoothing"], CROSS_ENTROPY)["c"] is None


def test_a_baseline_by_a_key_that_no_column_has_is_nobody() -> None:
    chains = pl.DataFrame({"chain_id": ["a", "b"], "seed": [0, 1]})
    assert partners(chains, ["seed"], CROSS_ENTROPY) == {"a": None, "b": None}


def test_a_baseline_by_a_number_and_by_null() -> None:
    chains = pl.DataFrame({"chain_id": ["a", "b"], "seed": [0, 0], "regime.synthetic_ratio": [0.0, None]})
    assert partners(chains, ["regime.synthetic_ratio"], {"regime.synthetic_ratio": 0}) == {"a": "a", "b": "a"}
    assert partners(chains, ["regime.synthetic_ratio"], {"regime.synthetic_ratio": None}) == {"a": "b", "b": "b"}
    assert partners(chains, ["regime.synthetic_ratio"], {"regime.synthetic_ratio": "0"}) == {"a": None, "b": None}


def test_a_baseline_number_is_found_in_a_column_of_text() -> None:
    """``family.ridge: [0.0, adaptive]`` is kept as text; the study file's baseline is the number."""
    chains = pl.DataFrame({"chain_id": ["none", "adaptive"], "family.ridge": ["0.0", "adaptive"], "seed": [0, 0]})
    assert partners(chains, ["family.ridge", "seed"], {"family.ridge": 0.0}) == {"none": "none", "adaptive": "none"}
