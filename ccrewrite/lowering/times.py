"""The times of forms, measured once and kept on disk: ``Times``, and the file that it reads and writes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ccrewrite.errors import InputError
from ccrewrite.ir.choice import Seconds
from ccrewrite.ir.documents import checked, read_json
from ccrewrite.ir.written import refused, replacing
from ccrewrite.lowering import inductor

Known = dict[str, Annotated[dict[str, Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]], Field(min_length=1)]]
"""What the file holds: seconds by form, for each key."""


class Times:
    """Seconds by form of whatever has a key: those on disk, and those measured since, which ``keep`` adds to the file."""

    def __init__(self) -> None:
        self._known = load_times()
        self._new: dict[str, Seconds] = {}

    def of(self, key: str | None, forms: Sequence[str], measured: Callable[[], Seconds]) -> tuple[Seconds, bool]:
        """(Seconds by form, whether they were known); ``measured`` gives those of ``forms``, or of some of them, where they
        aren't known yet. What has no key is measured each time."""
        if key is None:
            return measured(), False
        known = key in self._known
        if known and not set(self._known[key]) <= set(forms):
            found = f"expected times of {', '.join(forms)}, found {', '.join(self._known[key])}"
            warnings.warn(f"{cache_file()}: {key}: {found}; forms are measured anew", stacklevel=2)
            known = False
        if not known:
            self._known[key] = self._new[key] = measured()
        return self._known[key], known

    def keep(self) -> None:
        if self._new:
            save_times(self._new)


def cache_file() -> Path:
    """Where times are kept: ``$CCREWRITE_CACHE``, or the user's cache folder."""
    folder = os.environ.get("CCREWRITE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccrewrite"
    return Path(folder) / "forms.json"


def cache_key(device: torch.device, mode: str, *what: object) -> str | None:
    """Equal for what may be expected to take equally long: ``what`` (shapes and options), on this device and these versions.
    None where the code's version can't be told."""
    code = inductor.code_hash()
    if code is None:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    where = (name, torch.get_num_threads(), torch.__version__, code)
    return hashlib.sha256(repr((where, mode, what)).encode()).hexdigest()[:32]


def load_times() -> dict[str, Seconds]:
    """All that the file has, entries of other versions too; a file that can't be read has nothing, and a warning says so."""
    file = cache_file()
    if not file.exists():
        return {}
    try:
        return dict(checked(Known, read_json(file), file))
    except InputError as error:
        warnings.warn(f"{error}; forms are measured anew", stacklevel=2)
        return {}


def save_times(times: Mapping[str, Seconds]) -> None:
    """Add times to the file, whose other entries stay."""
    file = cache_file()
    try:
        with refused(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps({**load_times(), **times}, indent=1))
    except InputError as error:
        warnings.warn(f"{error}; the forms' times will be measured again next time", stacklevel=2)
