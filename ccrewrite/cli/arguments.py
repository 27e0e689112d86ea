"""What the command line's arguments stand for: a model, its inputs, the options of a rewrite."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ccrewrite.errors import InputError
from ccrewrite.ir.json_types import JsonObject

if TYPE_CHECKING:
    import torch
    from torch import nn


def load(factory: str, specs: list[str] | None) -> tuple[nn.Module, object]:
    """The model that ``factory`` names or makes, and its example inputs: those of ``specs``, or its own."""
    from torch import nn

    from ccrewrite.ir.typed import manual_seed

    if factory.endswith(".onnx"):
        raise InputError(
            f"{factory} is a file, not package.module:factory. `ccrewrite rewrite-onnx {factory} --out FILE` rewrites files; "
            "to train it, let a factory return ccrewrite.export.torch_model.torch_model(path, inputs): docs/from-onnx.md"
        )
    value = named(factory, "the model is named package.module:factory")
    if callable(value) and not isinstance(value, nn.Module):
        manual_seed(0)
        value = cast("Callable[[], Any]", value)()
    model, inputs = cast("tuple[Any, object]", value) if isinstance(value, tuple) else (value, None)
    if specs:
        inputs = inputs_of(specs)
    if inputs is None:
        name = factory.partition(":")[2]
        raise InputError(f"say what the model is called with: --input 1x3x224x224, or let {name} return (model, inputs)")
    return model, inputs


def named(reference: str, expected: str) -> Any:
    """What ``package.module:attribute`` refers to, whatever that is; modules of the working directory are found too."""
    module_name, colon, attribute = reference.partition(":")
    if not colon or not attribute:
        raise InputError(f"{expected}, found {reference!r}")
    sys.path.insert(0, os.getcwd())
    try:
        value: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"no module called {error.name!r} (looked up for {reference!r})") from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise InputError(f"{module_name} has no {attribute!r}")
        value = getattr(value, name)
    return value


def made(reference: str, key: str) -> Any:
    """What ``reference`` refers to, or where that can be called, what it returns; ``key`` is that of a file."""
    value = named(reference, f"{key} is named package.module:loader")
    return value() if callable(value) else value


def inputs_of(specs: list[str]) -> dict[str, torch.Tensor] | tuple[torch.Tensor, ...]:
    """What ``[NAME=]SHAPE[:dtype]`` stand for: tensors by name, or in order. Normally distributed, integers zero.

    >>> [(name, tensor.shape) for name, tensor in inputs_of(["image=1x3x8x8"]).items()]
    [('image', torch.Size([1, 3, 8, 8]))]
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    positional: list[torch.Tensor] = []
    named: dict[str, torch.Tensor] = {}
    for spec in specs:
        name, equals, shape_text = spec.rpartition("=")
        shape_text, colon, dtype_name = shape_text.partition(":")
        dtype = getattr(torch, dtype_name if colon else "float32", None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"--input {spec}: torch has no dtype {dtype_name!r}")
        sizes = shape_text.split("x")
        if not all(s.isdecimal() for s in sizes):
            raise InputError(f"--input {spec}: a shape is written like 1x3x224x224, found {shape_text!r}")
        shape = [int(s) for s in sizes]
        floating = dtype.is_floating_point or dtype.is_complex
        tensor = torch.randn(shape, generator=generator, dtype=dtype) if floating else torch.zeros(shape, dtype=dtype)
        if equals:
            named[name] = tensor
        else:
            positional.append(tensor)
    if named and positional:
        raise InputError("--input: name all of them or none (positional and keyword inputs can't be mixed)")
    return named or tuple(positional)


def options(
    include: list[str] | None, exclude: list[str] | None, kinds: str | None, rule: list[str] | None, config: Path | None
) -> JsonObject:
    """The keyword arguments of ``ccrewrite.plan``: those of the file ``config``, and over them those of the command line."""
    found: JsonObject = {}
    if config is not None:
        from ccrewrite.cli.files import selection_of
        from ccrewrite.ir.documents import read_toml

        found = selection_of(read_toml(config), f"--config {config}")
    given = {
        "include": include,
        "exclude": exclude,
        "kinds": kinds.split(",") if kinds else None,
        "rules": [_rule(r) for r in rule] if rule else None,
    }
    return found | {k: v for k, v in given.items() if v is not None}


def integers(option: str, text: str) -> tuple[int, ...]:
    """
    >>> integers("--batches", "1,8")
    (1, 8)
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option} takes integers with commas between them, found {text!r}")
    return tuple(map(int, parts))


def _rule(text: str) -> JsonObject:
    name, _, options = text.partition(":")
    table: JsonObject = {"rule": name}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"--rule {text}: options are written option=value, found {option!r}")
        try:
            table[key] = json.loads(value)
        except json.JSONDecodeError:
            table[key] = value
    return table
