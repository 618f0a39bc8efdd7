"""Near-duplicates, found by MinHash (Broder 1997) with datasketch, leave before training (Lee et al. 2022)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fortifai_ray.recipe.curation.base import Content, Items, Kept, Step, Truth

_NEAREST = 0.9  # the index is made for no higher similarity: it needs bands of hashes, and finds all that is above


class Deduplicate(Step):
    """Of texts that are nearly the same, the first passes (Lee et al. 2022, section 4.2, NearDup).

    Two texts are where the Jaccard similarity of their sets of ``shingle`` words in a row, as MinHash estimates it, is
    ``threshold`` or more. A text is compared with those that passed before it; one of fewer words is one shingle. The
    words of an n-gram model's document are its tokens.
    """

    takes: ClassVar[tuple[Content, ...]] = ("texts", "samples")  # which are documents, as AnalyticRecipe checks

    truth_is: ClassVar[Truth | None] = None  # a copy is not wrong

    kind: Literal["deduplicate"] = "deduplicate"
    threshold: float = Field(0.8, gt=0.0, le=1.0, description="Jaccard similarity from which a text is a duplicate")
    shingle: int = Field(5, ge=1, description="words in a row that are compared as one")
    permutations: int = Field(
        128, ge=16, le=1024, description="hashes of a MinHash: its standard error is √(J(1 − J)/permutations)"
    )
    keep: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="planned share: more is generated for what will leave; no more than it is trained on",
    )

    @property
    def share(self) -> float:
        return self.keep

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        return [self._first_of_each(texts) for texts in items.contents()]

    def _first_of_each(self, texts: Sequence[Any]) -> np.ndarray:
        """The indices of the texts that are no near-duplicate of one before them that passed."""
        from datasketch import MinHash, MinHashLSH

        # Rather a pair too many than one missed: the estimate from all hashes decides.
        near = min(self.threshold, _NEAREST)
        index = MinHashLSH(threshold=near, num_perm=self.permutations, weights=(0.1, 0.9))
        passed: dict[int, Any] = {}
        sketches = MinHash.generator([shingles(text, self.shingle) for text in texts], num_perm=self.permutations)
        for place, sketch in enumerate(sketches):
            if not any(sketch.jaccard(passed[one]) >= self.threshold for one in index.query(sketch)):
                passed[place] = sketch
                index.insert(place, sketch)
        return np.fromiter(passed, dtype=np.int64)


def shingles(text: str | np.ndarray, words: int) -> list[bytes]:
    """Every ``words`` words in a row of a text, or tokens of a document (length,), each once; the whole where it has
    fewer."""
    split = text.split() if isinstance(text, str) else [str(int(token)) for token in text]
    starts = range(max(1, len(split) - words + 1))
    return sorted({" ".join(split[start : start + words]).encode() for start in starts})
