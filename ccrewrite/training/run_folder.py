"""The folder of a fine-tuning run: settings, log, checkpoints. What it holds is complete, whenever the run is killed.

run.json             config, and what must be the same for going on: of model and data, and the forms of compiled sites
log.csv              one row for each step
checkpoint-00000120  accelerate's: weights, optimizer, gradient scaler; and progress.pt, what ``finetune`` adds
best.safetensors     weights at the best validation, where early stopping was asked for
model.safetensors    weights at the end
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.documents import checked, read_json
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.tensor_files import load_file, save_file
from ccrewrite.ir.written import refused, replacing
from ccrewrite.training.config import Compile
from ccrewrite.training.document import Progress, RowDocument

COLUMNS = ("step", "epoch", "lr", "loss", "task", "distillation", "features", "repulsion", "smoothness", "validation")
CHECKPOINT = re.compile(r"checkpoint-\d{8}")
Row = dict[str, Any]
"""Of log.csv: numbers, by the names in ``COLUMNS``; None: nothing was measured."""


class RunFolder:
    """``main`` says whether this process writes; ``barrier`` waits for all."""

    def __init__(self, path: str | os.PathLike[str], main: bool, barrier: Callable[[], None]) -> None:
        self.path, self.main, self.barrier = Path(path), main, barrier

    def compiled(self) -> Compile | None:
        """What ran compiled in the run that the folder holds; None: it holds none."""
        file = self.path / "run.json"
        if not file.exists():
            return None
        stored = cast(JsonObject, read_json(file, finite=False))
        found = stored.get("config", {}).get("compile", False)
        return found if found in (True, "sites") else False

    def forms(self) -> dict[str, str] | None:
        """The form of each site in that run, where some ran compiled by themselves; None: nothing says it."""
        file = self.path / "run.json"
        found = cast(JsonObject, read_json(file, finite=False)).get("forms") if file.exists() else None
        return None if found is None else checked(dict[str, str], found, file)

    def begin(self, settings: Mapping[str, object], resume: bool) -> Path | None:
        """The checkpoint to go on from, or None for a start. Raises ``InputError`` where the folder can't be used so."""
        file = self.path / "run.json"
        settings, longer = json.loads(json.dumps(settings)), False
        if file.exists():
            if not resume:
                raise InputError(f"{self.path} holds a run already; pass resume=True to go on with it, or another folder")
            stored = read_json(file, finite=False)  # a step may be inf: never
            longer = _extend_(stored, settings)
            if changes := list(_differences(stored, settings)):
                raise InputError(f"the run in {self.path} can't go on, for it began otherwise: {'; '.join(changes)}")
        self.barrier()  # all have looked
        if self.main and (longer or not file.exists()):
            with refused(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._write(file, json.dumps(settings, indent=2))
        found = self._checkpoints()
        self.barrier()
        return found[-1] if found else None

    def _checkpoints(self) -> list[Path]:
        """Those that ``checkpoint`` wrote, the last one at the end. Folders of other names are others'."""
        return sorted(path for path in self.path.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir())

    def checkpoint(self, step: int, save: Callable[[str], object], progress: Mapping[str, object]) -> None:
        """``save`` writes into a folder, all processes together, which then becomes the checkpoint; older ones go. Raises
        ``InputError`` where the disk refuses."""
        final, unfinished = self.path / name_of(step), self.path / "unfinished"
        try:
            if self.main:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
            self.barrier()
            save(str(unfinished))
            self.barrier()
            if self.main:
                torch.save(progress, unfinished / "progress.pt")
                os.replace(unfinished, final)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            raise InputError(f"{final} can't be written: {error}") from error
        if self.main:
            for old in self._checkpoints():
                if old != final:
                    shutil.rmtree(old, ignore_errors=True)
        self.barrier()

    def progress(self, checkpoint: Path) -> Progress:
        """What ``checkpoint`` was given, and no code from it: tensors and plain values."""
        file = checkpoint / "progress.pt"
        try:
            told = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises several kinds for a damaged file
            raise InputError(f"{file} can't be read: {error}") from error
        progress = checked(Progress, told, file)
        if name_of(progress.step) != checkpoint.name:
            raise InputError(f"{file}: step must be that of the folder's name, found {progress.step}")
        return progress

    def rows(self, until: int) -> list[Row]:
        """The log's rows up to step ``until``; those after it, which a killed run wrote, are deleted."""
        file, rows = self.path / "log.csv", list[Row]()
        if file.exists():
            try:
                with file.open(newline="", encoding="utf-8") as stream:
                    for row in csv.DictReader(stream):
                        if None in row.values():  # cut off within the row
                            break
                        told = checked(RowDocument, row, f"{file}, row {len(rows) + 1}")
                        if told.step > until:
                            break
                        rows.append(told.model_dump())
            except (OSError, ValueError, csv.Error) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{file} can't be read: {error}") from error
        self.barrier()  # all have read
        if self.main:
            self._write(file, "".join([",".join(COLUMNS) + "\n", *_lines(rows)]))
        return rows

    def log(self, rows: list[Row]) -> None:
        if self.main:
            file = self.path / "log.csv"
            with refused(file), file.open("a", newline="") as stream:
                stream.writelines(_lines(rows))

    def save_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """``weights`` are complete in the main process alone."""
        if self.main:
            stored = {n: t.detach().cpu().contiguous().clone() for n, t in weights.items()}
            with replacing(self.path / name) as file:
                save_file(stored, file)
        self.barrier()

    def weights(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path / name} can't be read: {error}") from error

    def _write(self, file: Path, text: str) -> None:
        with replacing(file) as unfinished:
            unfinished.write_text(text)


def name_of(step: int) -> str:
    """Of the checkpoint after ``step`` steps."""
    return f"checkpoint-{step:08d}"


def _lines(rows: list[Row]) -> list[str]:
    """As CSV; floats with all their digits."""
    return [",".join("" if row[n] is None else repr(row[n]) for n in COLUMNS) + "\n" for row in rows]


def _extend_(stored: Any, now: Any) -> bool:
    """Whether a run is to have more epochs than it ``stored``, which then has as many."""
    try:
        longer = stored["config"]["epochs"] < now["config"]["epochs"]
    except (KeyError, TypeError):
        return False
    if longer:
        stored["config"]["epochs"] = now["config"]["epochs"]
    return longer


def _differences(stored: object, now: object, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(now, dict):
        before, after = cast(JsonObject, stored), cast(JsonObject, now)
        pairs = {k: (before.get(k, "nothing"), after.get(k, "nothing")) for k in (*before, *after)}
        return [d for k, pair in pairs.items() for d in _differences(*pair, f"{name}.{k}".lstrip("."))]
    return [] if stored == now else [f"{name} was {stored}, now it is {now}"]
