"""Files are there whole or not at all; what is read from files is bounded and named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccrewrite.errors import InputError
from ccrewrite.ir import documents
from ccrewrite.ir.documents import Count, Document, checked, read_json, read_toml
from ccrewrite.ir.written import locked, replacing, workplace


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, error: BaseException | None = None) -> None:
    with replacing(target) as file:
        file.write_text("half")
        if error is not None:
            raise error


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(target, KeyboardInterrupt())
    assert (target.read_text(), names(tmp_path)) == ("old", ["a"])


def test_what_lies_beside_moves_too_and_the_target_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with replacing(tmp_path / "m.onnx") as file:
        file.write_text("model")
        file.with_name("m.onnx.data").write_text("weights")
        file.with_name("z").mkdir()
    assert moved == ["m.onnx.data", "z", "m.onnx"]
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "z"]


def test_what_the_disk_refuses_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", tmp_path / "no" / "file", tmp_path / "a\0b"):
        with pytest.raises(InputError, match="can't be written"):
            write(target)
    with pytest.raises(InputError, match=r"full can't be written: .*No space left"):
        write(tmp_path / "full", OSError(28, "No space left on device"))
    assert names(tmp_path) == ["folder"]


def test_leavings_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / ".ccrewrite-dead").mkdir()
    (tmp_path / ".ccrewrite-dead" / "weights").write_text("many")
    with workplace(tmp_path) as mine:
        assert names(tmp_path) == [mine.name]
        with replacing(tmp_path / "file") as file:
            file.write_text("text")
        assert names(tmp_path) == sorted([mine.name, "file"])
        with locked(mine, wait=False) as free:
            assert not free
    assert names(tmp_path) == ["file"]


class Settings(Document):
    size: Count
    word: str = ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", r"f\.json is damaged"),
        (b"[" * 100_000, r"f\.json is damaged: recursion limit"),
        (b"1" * 5000, r"f\.json is damaged: number out of range"),
        (b'{"size": NaN}', r"f\.json is damaged"),
        (b'{"size": 0}', r"f\.json: size: .*greater than or equal to 1, found 0"),
        (b'{"size": 1e300}', r"size: input should be a valid integer"),
        (b'{"size": 99999999999}', r"size: .*less than"),
        (b'{"sizes": 1}', r"size is missing; unknown key sizes; expected size, word"),
        (b'{"size": 1, "word": []}', r"word: input should be a valid string, found \[\]"),
        (b"[]", r"the whole: input should be a valid dictionary"),
    ],
)
def test_a_file_that_does_not_fit(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        checked(Settings, read_json(file), file)


def test_files_too_large_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST", 10)
    for read in (read_json, read_toml):
        with pytest.raises(InputError, match="can't be read"):
            read(tmp_path / "nowhere")
        (tmp_path / "large").write_text("1" * 11)
        with pytest.raises(InputError, match="larger than 10 bytes"):
            read(tmp_path / "large")
    (tmp_path / "deep.toml").write_text("a=" + "[" * 3)
    with pytest.raises(InputError, match=r"deep\.toml: no TOML"):
        read_toml(tmp_path / "deep.toml")
