"""A run folder that somebody else wrote in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ccrewrite.errors import InputError
from ccrewrite.training.run_folder import COLUMNS, RunFolder

PROGRESS: dict[str, Any] = {"step": 2, "best": float("inf"), "best_epoch": None, "worse": 0, "schedules": []}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, True, lambda: None)
    made.begin({"config": {"geometry_from": float("inf")}}, resume=False)
    made.checkpoint(2, lambda path: Path(path, "model").write_text("weights"), PROGRESS)
    made.rows(0)
    made.log([dict.fromkeys(COLUMNS, 1.0) | {"step": s, "epoch": 0, "validation": None} for s in (1, 2, 3)])
    return made


def test_it_goes_on(folder: RunFolder) -> None:
    checkpoint = folder.begin({"config": {"geometry_from": float("inf")}}, resume=True)
    assert checkpoint == folder.path / "checkpoint-00000002"
    assert checkpoint is not None
    assert folder.progress(checkpoint).step == 2
    assert [row["step"] for row in folder.rows(2)] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "x"}, r"progress\.pt: step: input should be a valid integer"),
        ({"step": 3}, "step must be that of the folder's name, found 3"),
        ({"best": None}, "best: input should be a valid number"),
        ({"worse": -1}, "worse: "),
        ({"more": 1}, "unknown key more"),
    ],
)
def test_progress_that_does_not_fit(folder: RunFolder, change: dict[str, Any], message: str) -> None:
    checkpoint = folder.path / "checkpoint-00000002"
    torch.save(PROGRESS | change, checkpoint / "progress.pt")
    with pytest.raises(InputError, match=message):
        folder.progress(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", r"log\.csv can't be read"),
        (b"a,b\n1,2\n", r"log\.csv, row 1: step is missing"),
        (",".join(COLUMNS).encode() + b"\n1,0,z,1,1,1,1,1,1,1\n", r"row 1: lr: .*found 'z'"),
        (",".join(COLUMNS).encode() + b"\n1,0,nan,1,1,1,1,1,1,1\n", r"row 1: lr: .*finite"),
    ],
)
def test_a_log_that_does_not_fit(folder: RunFolder, content: bytes, message: str) -> None:
    (folder.path / "log.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        folder.rows(2)


def test_folders_of_others_are_left_alone(folder: RunFolder) -> None:
    for name in ("checkpoint-best", "checkpoint-00000002.bak", "checkpoint-9"):
        (folder.path / name).mkdir()
    folder.checkpoint(4, lambda path: None, PROGRESS | {"step": 4})
    left = sorted(path.name for path in folder.path.glob("checkpoint-*"))
    assert left == ["checkpoint-00000002.bak", "checkpoint-00000004", "checkpoint-9", "checkpoint-best"]
    assert folder.begin({"config": {"geometry_from": float("inf")}}, resume=True) == folder.path / "checkpoint-00000004"


def test_a_full_disk_keeps_the_last_checkpoint(folder: RunFolder) -> None:
    def full(path: str) -> None:
        Path(path, "model").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"checkpoint-00000004 can't be written: .*No space left"):
        folder.checkpoint(4, full, PROGRESS)
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoint-00000002", "log.csv", "run.json"]
