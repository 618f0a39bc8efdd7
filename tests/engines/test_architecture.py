"""Which checkpoints an engine takes in place, and which need another engine."""

import json
from pathlib import Path

import pytest

from engines.helpers import make_checkpoint
from fortifai_ray.engines.checkpoints import architecture
from fortifai_ray.engines.pretrained import end_of_text_ids


def test_weights_and_trivia_do_not_change_the_architecture(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects the one start per sweep: a config written ahead of training equals the trained model's."""
    expected = architecture(checkpoints["tied0"])
    assert architecture(checkpoints["tied1"]) == expected
    config = json.loads((checkpoints["tied0"] / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "dtype": "bfloat16", "use_cache": False, "eos_token_id": 7}
    del config["attention_dropout"]  # a default that an older file leaves out
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture(tmp_path) == expected


def test_what_changes_the_network_changes_the_architecture(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects against weights poured into the wrong network."""
    other = make_checkpoint(tmp_path / "heads", 0, tied=True, heads=2)
    assert len({architecture(folder) for folder in (checkpoints["tied0"], checkpoints["untied0"], other)}) == 3


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    """Protects the message."""
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        architecture(tmp_path)


def test_end_of_text_comes_from_the_generation_config_first(tmp_path: Path) -> None:
    """Protects ``ignore_eos: false`` for models with several end tokens."""
    assert end_of_text_ids(tmp_path) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert end_of_text_ids(tmp_path) == [2]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    assert end_of_text_ids(tmp_path) == [1, 106]
