"""Every random number in a chain comes from here: a pure function of the recipe's seed and of its purpose.

The chain's identity never enters. Two chains that differ only in their loss or their synthetic ratio draw the same
human rows, prompts and sampling noise, so that their fidelity intervals are paired.
"""

import hashlib

import numpy as np

LARGEST_SEED = 10**18  # below 2**63, what a column of the tables holds


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(0, "sampling", generation, row)``.

    Stable across processes, machines and Python versions (SHA-256, not ``hash``), and independent between purposes.
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *purpose))
