"""Seeds: pairing rests on them, so they must be stable and independent."""

from fortifai_ray.seeds import derive_seed, generator


def test_seeds_never_change_between_versions_of_the_code() -> None:
    """A stored stage is found again only while the same recipe gives the same seeds: these values are for ever."""
    assert derive_seed(0, "sampling", 3, 17) == 2625024567236610860
    assert derive_seed(1, "sampling", 3, 17) != derive_seed(0, "sampling", 3, 17)


def test_purposes_do_not_run_into_each_other() -> None:
    """("a", 12) and ("a", 1, 2) are different purposes, and every seed fits into an int64."""
    purposes = [("a", 12), ("a", 1, 2), ("a1", 2), ("a", "1", "2", ""), ("",)]
    seeds = [derive_seed(0, *purpose) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat() -> None:
    """The same purpose draws the same numbers."""
    assert generator(5, "human").permutation(50).tolist() == generator(5, "human").permutation(50).tolist()
