"""A stage is damaged on its disk: its checksum tells, it is computed again, and what was built on it stays."""

from pathlib import Path

import pytest

from .studies import assert_same_tables, completed, sweep, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


def test_a_flipped_byte_costs_its_stage_alone(ray_instance: str, tmp_path: Path, undisturbed: Path) -> None:
    """In the model that a longer run of the study goes on from."""
    study, storage = write_study(tmp_path, "[0]"), tmp_path / "runs"
    sweep(study, storage, "--address", ray_instance, "--set", "generations=2")
    before = completed(storage)
    damaged = max((storage / "stages").glob("*/model.safetensors"), key=lambda file: file.stat().st_mtime)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    printed = sweep(write_study(tmp_path), storage, "--address", ray_instance)
    assert f"stage {damaged.parent.name} is damaged" in " ".join(printed.split())
    assert {stage for stage, _ in before.items() - completed(storage).items()} == {damaged.parent.name}
    assert_same_tables(storage, undisturbed)
