"""The studies of the soak: many small chains, each a trial of its own, and a few that are written by engines."""

from dataclasses import dataclass
from pathlib import Path

_IMAGES = """
name: soak_images
family: {kind: diffusion, data: {source: blobs, samples: 1000}, width: 16, timesteps: 20}
training: {epochs: 1}
samples_per_generation: 64
evaluation: {samples: 50}
generations: 2
regime: {kind: accumulate}
vary: {seed: {count: CHAINS}}
early_stopping: false
collapse: {metric: wasserstein, threshold: 5.0, direction: above}
"""
_TEXTS = """
name: soak_texts
family: {kind: language, model: {preset: llama-tiny, vocab_size: 512}}
corpus: {source: pydoc, train_tokens: 4096}
regime: {kind: mixed, synthetic_ratio: 0.75}
decoding: {temperature: 0.8, max_new_tokens: 56, context_tokens: 8}
training: {epochs: 1, batch_size: 8, block_size: 64, learning_rate: 2.0e-3}
engine: {kind: huggingface, dtype: float32}
resources: {engines: {count: 1}}
generations: 2
vary: {seed: {count: CHAINS}}
early_stopping: false
collapse: {metric: perplexity, threshold: 2.0, direction: above}
"""


@dataclass(frozen=True)
class SoakStudy:
    """A study file, its name, how many chains it has, and the mean number of steps between two kills (``pause``)."""

    name: str
    file: Path
    chains: int
    pause: float
    engines: bool


def write_studies(folder: Path, chains: int, texts: int) -> list[SoakStudy]:
    """``chains`` chains in all, ``texts`` of them language models written by engines."""
    kinds = [("soak_images", _IMAGES, chains - texts, 80.0, False), ("soak_texts", _TEXTS, texts, 5.0, True)]
    studies = []
    for name, content, count, pause, engines in kinds:
        file = folder / f"{name}.yaml"
        file.write_text(content.replace("CHAINS", str(count)))
        if count:
            studies.append(SoakStudy(name, file, count, pause, engines))
    return studies
