"""A long or wrong folder for temporary files: Ray's sockets get a short name, or one line says what is wrong."""

import os
from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.process.temporary import RAY_SOCKET, VLLM_SOCKET, check_temporary, short_folder, short_name

LONGEST = 103  # bytes: macOS's, less than Linux's 107


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [10, 60, 110, 200])
@pytest.mark.parametrize("beneath", [RAY_SOCKET, VLLM_SOCKET])
def test_a_name_that_a_socket_fits_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, length: int, beneath: int
) -> None:
    """Whatever lies below the name lies in the folder itself; nothing stays behind."""
    folder = tmp_path / ("d" * max(1, length - len(str(tmp_path)) - 1))
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
    check_temporary()
    with short_name(beneath) as short:
        assert len(os.fsencode(short)) + beneath <= LONGEST
        (short / "ray").mkdir()
        assert (folder / "ray").is_dir()
    assert short == folder or not os.path.lexists(short)


def test_bytes_count_and_not_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("ü" * 40)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with short_name(VLLM_SOCKET) as short:
        assert len(os.fsencode(short)) + VLLM_SOCKET <= LONGEST


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_setting_it_is_tmp(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv("TMPDIR", value)
    check_temporary()
    assert short_folder(VLLM_SOCKET) == Path("/tmp")
    with short_name(RAY_SOCKET) as short:
        assert short == Path("/tmp")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: str(folder / "missing"), "does not exist"),
        (lambda folder: str(folder / "file"), "is no folder"),
        (lambda folder: "relative", "is no absolute path"),
        (lambda folder: "~/tmp", "does not exist"),
        (lambda folder: str(folder / "dangling"), "is no folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: object, complaint: str
) -> None:
    """In one line, with the variable, the folder and what to do: Python itself would pass over it in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv(name, make(tmp_path))  # type: ignore[operator]
    with pytest.raises(UserError, match=complaint) as error:
        check_temporary()
    assert str(error.value).startswith(f"{name}=")
    assert "\n" not in str(error.value)


def test_where_every_folder_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then is it the user's to mend."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr("fortifai_ray.process.temporary._LONGEST", LONGEST)
    with pytest.raises(UserError, match=r"at most \d bytes"):
        short_folder(LONGEST - 1)
