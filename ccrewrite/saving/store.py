"""``save``: recipe.json and weights.safetensors in a directory. ``load``: both onto a fresh original, all or nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import _SIZE as DTYPES
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.distributed.tensor import DTensor

from ccrewrite.api import Result
from ccrewrite.errors import CcrewriteError, InputError
from ccrewrite.families.look import look_once_
from ccrewrite.ir.capture import Model, as_module
from ccrewrite.ir.documents import checked, read_json
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.preserve import _Attributes as Attributes
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.wrappers import require_bare, unwrapped
from ccrewrite.ir.written import leftovers, locked, refused, workplace
from ccrewrite.saving.document import FORMAT, RecipeDocument
from ccrewrite.saving.original import added_names, described
from ccrewrite.saving.placed import REMEDY
from ccrewrite.saving.recipe import Recipe

RECIPE, WEIGHTS = "recipe.json", "weights.safetensors"


def save(rewritten: GivenModel, directory: str | os.PathLike[str], *, geometry_only: bool = False) -> None:
    """Write a rewritten model to ``directory`` (made where it's missing): ``recipe.json``, what was done to which original, and
    ``weights.safetensors``, in the dtypes that the tensors have now.

    ``rewritten`` is the model, or what ``rewrite`` returned: its plan and check are then kept in the recipe, to be read. What
    ``load`` does again is read off the model itself, as it is now. ``geometry_only`` leaves out every tensor that the original
    has as well: kilobytes, for the original that they were learned on.

    A save that is there stays whole until the new one is: if the process is killed, one of the two can be loaded. Raises
    ``InputError`` where nothing in the model is rewritten, where it holds what can't be written (tensors without values or
    sharded ones, samplings of no family that is registered), and where the directory can't be written.

    >>> import ccrewrite, tempfile
    >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2)), torch.randn(1, 3, 16, 16)
    >>> result = ccrewrite.rewrite(model, x)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(result, directory)
    ...     again = load(nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2)), directory)
    >>> type(again[0]).__name__, torch.equal(again(x), result.model(x))
    ('DclsConv2d', True)
    """
    model = model_of(rewritten, "what save keeps")
    recipe = Recipe.of(model)
    model = unwrapped(model)
    if not recipe.samplings:
        raise InputError(
            f"nothing in this {type(model).__name__} is rewritten; rewrite returns a copy, and save takes that (result.model)"
        )
    only = added_names(model) if geometry_only else None
    tensors = _storable({n: t for n, t in _untied(model.state_dict(keep_vars=True)).items() if only is None or n in only})
    about = {"format": FORMAT, "ccrewrite": version("ccrewrite"), "torch": torch.__version__, "geometry_only": geometry_only}
    record = json.loads(rewritten.to_json()) if isinstance(rewritten, Result) else None
    folder = Path(directory)
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        if (folder / WEIGHTS).is_dir():
            raise InputError(f"{folder / WEIGHTS} can't be written: there is a folder of that name")
        with workplace(folder) as unfinished:
            save_file(tensors, unfinished / WEIGHTS, metadata={"format": "pt"})
            document = {**about, **recipe.to_data(), "rewrite": record}
            document["sha256"] = _digest(document, unfinished / WEIGHTS)
            (unfinished / RECIPE).write_text(json.dumps(document, indent=1), encoding="utf-8")
            try:
                with locked(folder):
                    os.replace(unfinished / RECIPE, folder / RECIPE)  # from here on load takes the new weights, where they lie
                    os.replace(unfinished / WEIGHTS, folder / WEIGHTS)
            except BaseException:
                _settle(folder)
                raise


def load(model: Model, directory: str | os.PathLike[str]) -> nn.Module:
    """What ``save`` wrote, on ``model``: a fresh original, as it was before ``rewrite``. In place; returns it.

    No example inputs are needed: the recipe is replayed. The dtypes must be those that were saved; values go to the device that
    ``model`` is on. What ``save`` doesn't write is ``model``'s own: training flags, hooks, which parameters are frozen.

    Raises ``InputError`` where a file is missing, damaged or from a later version, and where ``model`` is not the model that
    was rewritten; ``model`` is then as it was. Nothing is unpickled.
    """
    module = require_bare(as_module(model), "load")
    document, tensors = _read(Path(directory))
    try:
        recipe = Recipe.from_document(document)
        recipe.require_original(module)
        with _unchanged_on_failure(module):
            recipe.replay_(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
            _load_(module, tensors, geometry_only=document.geometry_only)
            look_once_(module)
    except CcrewriteError as error:
        raise InputError(f"{directory}: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{directory}: {RECIPE} is damaged, or load failed on it: {type(error).__name__}: {error}") from error
    return module


def _read(directory: Path) -> tuple[RecipeDocument, dict[str, Tensor]]:
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


def _recipe(directory: Path) -> dict[str, Any]:
    recipe = directory / RECIPE
    if not recipe.is_file():
        raise InputError(f"{recipe} can't be read: No such file. ccrewrite.save writes it")
    data = read_json(recipe)
    found = cast("dict[str, Any]", data).get("format") if isinstance(data, dict) else None
    if type(found) is not int or found < 1:
        raise InputError(f"{recipe} is no recipe of ccrewrite.save: it has no format number")
    if found > FORMAT:
        by = data.get("ccrewrite")
        raise InputError(f"{recipe} has format {found}, written by ccrewrite {by}; this one reads up to {FORMAT}: update it")
    return data


def _weights(directory: Path, recipe: Mapping[str, Any]) -> Path | None:
    """The weights that ``recipe`` was saved with: where a save was killed they are still in its own folder. None: missing."""
    files = [*(folder / WEIGHTS for folder in leftovers(directory)), directory / WEIGHTS]
    unsigned = {name: value for name, value in recipe.items() if name != "sha256"}
    for file in files:
        try:
            if _digest(unsigned, file) == recipe.get("sha256"):
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


def _digest(document: Mapping[str, Any], weights: Path) -> str:
    """SHA-256 of the weights' file and the recipe's content."""
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(json.dumps(document, sort_keys=True).encode())
    return digest.hexdigest()


def _load_(model: nn.Module, tensors: Mapping[str, Tensor], *, geometry_only: bool) -> None:
    """Check that ``tensors`` are those of ``model``, then copy them."""
    everything = model.state_dict(keep_vars=True)
    own = _untied(everything)
    only = added_names(model) if geometry_only else own.keys()
    expected = {n: described(n, t) for n, t in own.items() if n in only}
    found = {n: described(n, t) for n, t in tensors.items()}
    different = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
    if different:
        shown = "; ".join(f"{n}: expected {expected.get(n, 'nothing')}, found {found.get(n, 'nothing')}" for n in different[:4])
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise InputError(f"{WEIGHTS} doesn't hold what this model needs. {shown}{more}. {REMEDY}")
    meta = next((n for n, t in own.items() if isinstance(t, Tensor) and t.is_meta), None)
    if meta is not None:
        raise InputError(f"{meta} is on the meta device, which holds no values: call model.to_empty(device=...) first")
    before = {n: t.detach().to("cpu", copy=True) for n, t in own.items() if n in only}
    first = {id(t): n for n, t in own.items()}
    try:
        model.load_state_dict({n: tensors.get(first[id(t)], t) for n, t in everything.items()})
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                if not torch.equal(own[name].to("cpu"), value):
                    own[name].copy_(value)
        raise


@contextmanager
def _unchanged_on_failure(model: nn.Module) -> Generator[None]:
    """Where what is inside raises, the structure of ``model`` is as it was."""
    before = [(m, type(m), Attributes(m)) for m in model.modules()]
    with one_at_a_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for the trees in an exported graph
        graphs = {m: copy.deepcopy(m.graph) for m in model.modules() if isinstance(m, fx.GraphModule)}
    try:
        yield
    except BaseException:
        for module, kind, attributes in before:
            module.__class__ = kind
            attributes.restore()
        for module, graph in graphs.items():
            module.graph = graph
        raise


def _untied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Each tensor once, under the first of its names."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name] for name in first.values()}


def _storable(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own."""
    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise InputError(f"{name}: save writes plain tensors, found {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            found = f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise InputError(f"{name}: save writes dense tensors with values, of the dtypes of safetensors; found {found}")
        value = tensor.detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        shared = storage.nbytes() != value.nbytes or storage.data_ptr() in taken
        taken.add(storage.data_ptr())
        stored[name] = value.clone() if shared else value
    return stored
