"""Files of any producer, read: ``read`` gives their graph in operator set 13 or later, with the shapes that can be inferred."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ccrewrite.errors import InputError
from ccrewrite.export.again import native_
from ccrewrite.export.files import load, write
from ccrewrite.families.onnx import DOMAIN

OLDEST, CONVERTED = 7, 13
"""Operator sets: the oldest that is read, and the one that older ones than it are converted to."""
INPUTS_APART_SINCE = 4
"""Version of ONNX's file format: in older ones, every initializer is an input too."""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout")

SEED = 6_120_000
"""The first of our seeds. They are recognised by their numbers, for a converter keeps nothing else."""


@dataclass(frozen=True)
class Source:
    """A model that was read. ``name``: for messages. ``path``: the file, None where there is none. ``given``: as it was, and
    ``model``: what is to be rewritten. ``external``: its weights are in files of their own. ``random``: it draws random
    numbers, which were given seeds."""

    name: str
    path: Path | None
    given: ir.Model
    model: ir.Model
    external: bool
    random: bool

    def file(self, directory: Path) -> Path:
        """What the rewritten file is compared with; where there is no such file, it is written to ``directory``."""
        if self.path is not None and not self.random:
            return self.path
        write(self.given, directory / "given.onnx")
        return directory / "given.onnx"


def read(given: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> Source:
    """A file, or a model in memory, which stays as it is. Raises ``InputError`` where it can't be read or converted, external
    data are missing, or it was rewritten before and edited since."""
    path = Path(given) if isinstance(given, (str, os.PathLike)) else None
    name = "the model" if path is None else str(path)
    try:
        if path is not None:
            whole = load(path)
        else:
            whole = given.clone() if isinstance(given, ir.Model) else ir.from_proto(cast(onnx.ModelProto, given))
    except Exception as error:
        raise InputError(f"{name} can't be read as ONNX: {type(error).__name__}: {_first_line(error)}") from error
    external, random = _load_external_(whole, name), seed_(whole)
    model = native_(whole.clone(), name)
    _plain_domain_(model)
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        raise InputError(f"{name} is of operator set {opset}, the oldest that is taken is {OLDEST}")
    if model.ir_version < INPUTS_APART_SINCE:
        passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = INPUTS_APART_SINCE
    _inline_(model)
    try:
        if opset < CONVERTED:
            model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), CONVERTED))
        model = passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model).model
    except Exception as error:
        raise InputError(f"{name}, of operator set {opset}, can't be converted to {CONVERTED}: {_first_line(error)}") from error
    for value, told in zip(model.graph.outputs, whole.graph.outputs, strict=True):
        value.shape = told.shape or value.shape  # with the names that it says
    return Source(name, path, whole, model, external, random)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _load_external_(model: ir.Model, name: str) -> bool:
    """Weights in other files, read; whether there were some."""
    tensors = [v.const_value for v in _initializers(model) if isinstance(v.const_value, ir.ExternalTensor)]
    for tensor in tensors:
        size = os.path.getsize(tensor.path) if os.path.exists(tensor.path) else -1
        if size < (tensor.offset or 0) + (tensor.length or 0):
            what = "is missing" if size < 0 else "is too short"
            raise InputError(f"{name} keeps {tensor.name} in {Path(tensor.path).name}, which {what}")
    if tensors:
        ir.external_data.load_to_model(model)
    return bool(tensors)


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in {id(g): g for g in (model.graph, *(n.graph for n in model.graph.all_nodes())) if g is not None}.values():
        yield from getattr(graph, "initializers", {}).values()


def _plain_domain_(model: ir.Model) -> None:
    """The standard operators under the shorter of their two names."""
    for owner in (model, *model.functions.values()):
        if "ai.onnx" in owner.opset_imports:
            version = owner.opset_imports.pop("ai.onnx")
            owner.opset_imports[""] = max(version, owner.opset_imports.get("", 0))
    for node in _all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _inline_(model: ir.Model) -> None:
    """Functions of others, as the nodes that they are made of: there may be convolutions in them. Ours stay."""
    if any(f.domain != DOMAIN for f in model.functions.values()):
        passes.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)


def seed_(model: ir.Model) -> bool:
    """Let nodes that draw random numbers draw the same in every run, until ``unseed_``; whether there are some."""
    drawing = [n for n in _all_nodes(model) if n.domain == "" and n.op_type in RANDOM and _draws(n)]
    for i, node in enumerate(drawing):
        whole = node.op_type == "Dropout"
        node.attributes["seed"] = ir.AttrInt64("seed", SEED + i) if whole else ir.AttrFloat32("seed", float(SEED + i))
    return bool(drawing)


def _draws(node: ir.Node) -> bool:
    if "seed" in node.attributes:
        return False
    return node.op_type != "Dropout" or (len(node.inputs) > 2 and node.inputs[2] is not None)


def unseed_(model: ir.Model) -> None:
    """Take the seeds away that ``seed_`` gave."""
    for node in _all_nodes(model):
        if node.op_type in RANDOM and "seed" in node.attributes and SEED <= node.attributes["seed"].value < 2 * SEED:
            del node.attributes["seed"]
