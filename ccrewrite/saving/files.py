"""The two files of a saved model, recipe.json and weights.safetensors: written together, wherever that stops, and read so."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from torch import Tensor

from ccrewrite.errors import CcrewriteError, InputError
from ccrewrite.ir.documents import checked, read_json
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.tensor_files import load_file, save_file
from ccrewrite.ir.written import leftovers, locked, refused, workplace
from ccrewrite.saving.document import FORMAT, RecipeDocument

RECIPE, WEIGHTS = "recipe.json", "weights.safetensors"


def write(folder: Path, recipe: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Both files, made elsewhere and then moved into place. Raises ``InputError`` where that can't be done."""
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        if (folder / WEIGHTS).is_dir():
            raise InputError(f"{folder / WEIGHTS} can't be written: there is a folder of that name")
        with workplace(folder) as unfinished:
            save_file(tensors, unfinished / WEIGHTS)
            signed = {**recipe, "sha256": digest(recipe, unfinished / WEIGHTS)}
            (unfinished / RECIPE).write_text(json.dumps(signed, indent=1), encoding="utf-8")
            try:
                with locked(folder):
                    os.replace(unfinished / RECIPE, folder / RECIPE)  # from here on load takes the new weights, where they lie
                    os.replace(unfinished / WEIGHTS, folder / WEIGHTS)
            except BaseException:
                _settle(folder)
                raise


def read(directory: Path) -> tuple[RecipeDocument, dict[str, Tensor]]:
    """Raises ``InputError`` where a file is missing, damaged, of a later format or of another save."""
    recipe, data = directory / RECIPE, _recipe(directory)
    weights = _weights(directory, data)
    while weights is None:
        again = _recipe(directory)
        if again == data:
            raise InputError(f"{recipe} and {WEIGHTS} are damaged, or not of one save: their digest is another one")
        data, weights = again, _weights(directory, again)  # it was saved anew meanwhile
    document = checked(RecipeDocument, data, f"{recipe} is damaged")
    try:
        return document, load_file(weights)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} can't be read: {error}") from error


def _recipe(directory: Path) -> JsonObject:
    recipe = directory / RECIPE
    if not recipe.is_file():
        raise InputError(f"{recipe} can't be read: No such file. ccrewrite.save writes it")
    content = read_json(recipe)
    data = cast(JsonObject, content) if isinstance(content, dict) else {}
    found = data.get("format")
    if type(found) is not int or found < 1:
        raise InputError(f"{recipe} is no recipe of ccrewrite.save: it has no format number")
    if found > FORMAT:
        by = data.get("ccrewrite")
        raise InputError(f"{recipe} has format {found}, written by ccrewrite {by}; this one reads up to {FORMAT}: update it")
    return data


def _weights(directory: Path, recipe: Mapping[str, object]) -> Path | None:
    """The weights that ``recipe`` was saved with: where a save was killed they are still in its own folder. None: missing."""
    files = [*(folder / WEIGHTS for folder in leftovers(directory)), directory / WEIGHTS]
    unsigned = {name: value for name, value in recipe.items() if name != "sha256"}
    for file in files:
        try:
            if digest(unsigned, file) == recipe.get("sha256"):
                return file
        except OSError as error:
            if file == files[-1]:
                raise InputError(f"{file} can't be read: {error}") from error
    return None


def _settle(directory: Path) -> None:
    """Put the weights of a save that was killed in their place, so that what it left can be removed."""
    with locked(directory), suppress(CcrewriteError):
        if leftovers(directory) and (weights := _weights(directory, _recipe(directory))) is not None:
            os.replace(weights, directory / WEIGHTS)


def digest(document: Mapping[str, object], weights: Path) -> str:
    """SHA-256 of the weights' file and the recipe's content."""
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
    found.update(json.dumps(document, sort_keys=True).encode())
    return found.hexdigest()
