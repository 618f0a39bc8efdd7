"""Steps and rewards of a user's own, some of them wrong, for the tests of curation."""

import numpy as np


class Positive:
    """Keeps samples whose first number is above a limit."""

    share = 0.5

    def __init__(self, above: float = 0.0):
        self.above = above

    def keep(self, items, scores, rng):
        return [place for place, item in enumerate(items) if item[0] > self.above]


class LikelyHalf:
    def keep(self, items, scores):
        under = scores("own")
        return under >= np.median(under)


class EveryOther:
    def keep(self, items):
        return np.arange(0, len(items), 2)


class Later:
    """All but the first third, and one that it has not asked for."""

    def keep(self, items):
        return np.arange(len(items) // 3, len(items))


class Random:
    def keep(self, items, scores, rng):
        return np.sort(rng.permutation(len(items))[: len(items) // 2])


class Fails:
    def keep(self, items):
        raise RuntimeError("no luck")


class ByNobody:
    def keep(self, items, scores):
        return scores("generation_1") > 0


class OutOfRange:
    def keep(self, items):
        return [0, len(items)]


class Twice:
    def keep(self, items):
        return [1, 1]


class Nothing:
    def keep(self, items):
        return []


class Words:
    def keep(self, items):
        return ["a"]


class NoKeep:
    pass


class Greedy:
    share = 1.5

    def keep(self, items):
        return [0]


class Short:
    """Keeps texts of few words."""

    def __init__(self, words: int = 20):
        self.words = words

    def keep(self, items, scores):
        assert all(isinstance(item, str) for item in items)
        assert scores("generation_0").shape == (len(items),)
        return [place for place, text in enumerate(items) if len(text.split()) <= self.words]


def first_number(items, scale=1.0):
    return scale * items[:, 0]


def nearest(items, of, *, to=0.0):
    return -abs(items[:, of] - to)


def letters(items):
    return [len(item) for item in items]


def one_short(items):
    return np.zeros(len(items) - 1)


def some_nan(items):
    return np.where(np.arange(len(items)) == 3, np.nan, 0.0)


def raises(items):
    raise ValueError("no reward today")


class ShortMask:
    def keep(self, items):
        return np.ones(2, dtype=bool)


class TheItems:
    def keep(self, items):
        return [item for item in items if len(item)]


class Silent:
    def keep(self, items):
        items[:2]


class Shares:
    def keep(self, items):
        return np.linspace(0, 1, len(items))


class Leaves:
    def keep(self, items):
        raise SystemExit("that will do")


class Scribbles:
    """Writes on what it was given, as ``x -= x.mean()`` does, and keeps all."""

    def keep(self, items):
        items[:] = items * 0
        return np.arange(len(items))


class Remembers:
    """Lets nothing pass twice."""

    def __init__(self):
        self.seen = set()

    def keep(self, items):
        new = [place for place, item in enumerate(items) if str(item) not in self.seen]
        self.seen |= {str(item) for item in items}
        return new


class TossesItsOwnCoin:
    def keep(self, items):
        return np.random.random(len(items)) < 0.5


class Static:
    @staticmethod
    def keep(items):
        return np.arange(len(items))


class Demanding:
    def keep(self, items, scores, rng, model):
        return [0]


class Large:
    """Needs more items than a trial has at first."""

    def keep(self, items):
        if len(items) < 20:
            raise ValueError("too few to form clusters")
        return [0]


class NoTruth:
    def keep(self, items, scores):
        return scores("truth") > 0


class Scorer:
    def __call__(self, items):
        return -np.abs(items[:, 0])


scorer = Scorer()


def nothing():
    return [0.0]


def by_name_alone(*, items):
    return np.zeros(len(items))


def in_a_column(items):
    return np.zeros((len(items), 1))


def in_words(items):
    return ["good"] * len(items)


def one_word(items):
    return "good"


def coin(items):
    return np.random.random(len(items))


def sorts(items):
    items.sort(axis=0)
    return np.arange(len(items))


def helper(items):
    return items[0]["reward"]


def through_a_helper(items):
    return helper(items)


def says_much(items):
    raise RuntimeError("first line\nsecond line\n" + "and so on " * 100)


class NoShare:
    @property
    def share(self):
        return 1 / 0

    def keep(self, items):
        return [0]


class Quits:
    def __init__(self):
        raise SystemExit("not here")

    def keep(self, items):
        return [0]


class Yields:
    def keep(self, items):
        yield 0


class Ragged:
    def keep(self, items):
        return [[0], [1, 2]]


def a_dict(items):
    return {place: 0.0 for place in range(len(items))}
