"""``save``: a rewritten model to a directory. ``load``: what is there onto a fresh original, all or nothing."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import fx, nn

from ccrewrite.api import Result
from ccrewrite.errors import CcrewriteError, InputError
from ccrewrite.families.adapters import require_merged
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.families.stored import settle_
from ccrewrite.ir.capture import Model, as_module
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.own_state import OwnState
from ccrewrite.ir.preserve import trainable_made
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.wrappers import require_bare, require_trainable, unwrapped
from ccrewrite.saving.digests import digests_of, warn_of_other_weights
from ccrewrite.saving.document import FORMAT
from ccrewrite.saving.files import RECIPE, read, write
from ccrewrite.saving.recipe import Recipe
from ccrewrite.saving.tensors import load_tensors_, storable, tensors_of


def save(rewritten: GivenModel, directory: str | os.PathLike[str], *, geometry_only: bool = False) -> None:
    """Write a rewritten model to a directory: ``recipe.json``, what was done to which original, and ``weights.safetensors``, in
    the dtypes that the tensors have now.

    A save that is there stays whole until the new one is: if the process is killed, one of the two can be loaded.

    Args:
        rewritten: the model, or what ``rewrite`` returned: its plan and check are then kept in the recipe, to be read. What
            ``load`` does again is read off the model itself, as it is now.
        directory: made where it's missing.
        geometry_only: leave out every tensor that the original has as well: kilobytes, for the original that they were
            learned on; digests of its tensors are kept in their place.

    Raises:
        InputError: where nothing in the model is rewritten, where it holds what can't be written (tensors without values or
            sharded ones, samplings of no family that is registered, adapters that aren't merged), and where the directory
            can't be written.

    >>> import ccrewrite, tempfile
    >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2)), torch.randn(1, 3, 16, 16)
    >>> result = ccrewrite.rewrite(model, x)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(result, directory)
    ...     again = load(nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2)), directory)
    >>> type(again[0]).__name__, torch.equal(again(x), result.model(x))
    ('DclsConv2d', True)
    """
    check_arguments(save, locals())
    model = model_of(rewritten, "what save keeps")
    recipe = Recipe.of(model)
    model = unwrapped(model)
    require_merged(model, rewritten_sites(model).values(), "save")
    if not recipe.samplings:
        raise InputError(
            f"nothing in this {type(model).__name__} is rewritten; rewrite returns a copy, and save takes that (result.model)"
        )
    tensors = storable(tensors_of(model, geometry_only=geometry_only))
    about = {"format": FORMAT, "ccrewrite": version("ccrewrite"), "torch": torch.__version__, "geometry_only": geometry_only}
    record = json.loads(rewritten.to_json()) if isinstance(rewritten, Result) else None
    weights = digests_of(model) if geometry_only else {}
    write(Path(directory), {**about, **recipe.to_data(), "weights": weights, "rewrite": record}, tensors)


@trainable_made()
def load(model: Model, directory: str | os.PathLike[str]) -> nn.Module:
    """What ``save`` wrote, on a fresh original. In place.

    No example inputs are needed: the recipe is replayed. Nothing is unpickled. A ``WeightsWarning`` says where geometry that
    was saved by itself was learned on other weights than ``model`` has.

    Args:
        model: the model as it was before ``rewrite``. Its dtypes must be those that were saved; values go to the device that it
            is on. What ``save`` doesn't write is its own: training flags, hooks, which parameters are frozen.
        directory: what ``save`` was given.

    Returns:
        ``model``.

    Raises:
        InputError: where a file is missing, damaged or from a later version, and where ``model`` is not the model that was
            rewritten; it is then as it was.

    >>> import ccrewrite, tempfile
    >>> model, x = nn.Conv2d(3, 8, 3, stride=2), torch.randn(1, 3, 17, 17)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(ccrewrite.rewrite(model, x), directory, geometry_only=True)
    ...     type(load(model, directory)).__name__
    'CCConv2d'
    """
    check_arguments(load, locals())
    module = require_bare(as_module(model), "load")
    require_trainable(module, "load")
    document, tensors = read(Path(directory))
    try:
        recipe = Recipe.from_document(document)
        recipe.require_original(module)
        with _unchanged_on_failure(module):
            recipe.replay_(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
            load_tensors_(module, tensors, geometry_only=document.geometry_only)
            settle_(module)
    except CcrewriteError as error:
        raise InputError(f"{directory}: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{directory}: {RECIPE} is damaged, or load failed on it: {type(error).__name__}: {error}") from error
    if document.geometry_only:
        warn_of_other_weights(module, document.weights, Path(directory))
    return module


@contextmanager
def _unchanged_on_failure(model: nn.Module) -> Generator[None]:
    """Where what is inside raises, the structure of ``model`` is as it was."""
    before = [(m, type(m)) for m in model.modules()]
    state = OwnState(vars(m) for m, _ in before)
    with one_at_a_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, for the trees in an exported graph
        graphs = {m: copy.deepcopy(m.graph) for m in model.modules() if isinstance(m, fx.GraphModule)}
    try:
        yield
    except BaseException:
        for module, kind in before:
            module.__class__ = kind
        state.restore()
        for module, graph in graphs.items():
            module.graph = graph
        raise
