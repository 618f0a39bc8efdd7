"""An engine is killed in the middle of a corpus: another one answers, and the chain never knows."""

from pathlib import Path

import pytest

from .clusters import RayCluster
from .studies import SOAK, assert_same_tables, completed, start, sweep, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

TEXTS = """
name: faults
family: {kind: language, model: {preset: llama-tiny, vocab_size: 512}}
corpus: {source: pydoc, train_tokens: 16384}
decoding: {temperature: 0.8, max_new_tokens: 56, context_tokens: 8}
training: {epochs: 1, batch_size: 8, block_size: 64, learning_rate: 2.0e-3}
resources: {engines: {count: 1}}
generations: 2
collapse: {metric: perplexity, threshold: 2.0, direction: above}
"""


@SOAK
def test_soak_an_engine_that_dies_is_replaced(cluster: RayCluster, tmp_path: Path, ray_instance: str) -> None:
    """On a cluster, in the middle of a batch: the same tables as where none died, and no finished step twice."""
    study, storage = tmp_path / "texts.yaml", tmp_path / "runs"
    study.write_text(TEXTS)
    running = start(study, storage, "--address", cluster.address)
    wait_for(lambda: cluster.processes("EngineActor.generate"), running)
    cluster.processes("EngineActor.generate")[0].kill()
    before = completed(storage)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert before.items() <= completed(storage).items()
    assert "engine starts 2" in " ".join(printed.split())
    sweep(study, tmp_path / "whole", "--address", ray_instance)
    assert_same_tables(storage, tmp_path / "whole")
