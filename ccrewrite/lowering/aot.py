"""``aot``: a compiled package that runs without Python's model code, and without ccrewrite."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package, aoti_load_package  # pyright: ignore[reportUnknownVariableType]
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import ExportError, InputError
from ccrewrite.folded.fusing import Fusing
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import COMPILED, Check, OutputCheck
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, Outcome, model_of
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.progress import step
from ccrewrite.ir.written import replacing, writable
from ccrewrite.lowering import inductor
from ccrewrite.lowering.choose import choose_folded
from ccrewrite.lowering.observed import judge
from ccrewrite.passes.fold import fold
from ccrewrite.passes.fold.choose import estimated
from ccrewrite.passes.fold.sites import FoldedSite
from ccrewrite.passes.noise import with_noise
from ccrewrite.passes.verify import compare_outputs


@dataclass(frozen=True)
class Package(Outcome[FoldedSite]):
    """What ``aot`` returns: the ``path`` of the package, what ``fold`` made of each site, and ``check``, which compares the
    package with the model that was given."""

    path: Path
    sites: tuple[FoldedSite, ...]
    check: Check

    def rows(self) -> list[dict[str, str]]:
        return [{"site": site.name, "becomes": site.code, "message": site.message} for site in self.sites]

    def to_dict(self) -> JsonObject:
        """As plain data: ``{"path", "sites", "check"}``."""
        return {"path": str(self.path), "sites": [asdict(s) for s in self.sites], "check": self.check.to_dict()}


def aot(
    model: GivenModel,
    path: str | os.PathLike[str],
    example_inputs: object,
    *,
    dynamic_shapes: Any = None,
    inductor_configs: Mapping[str, object] | None = None,
    compile_mode: str | None = None,
    measured: bool = True,
) -> Package:
    """Fold a rewritten model, compile it ahead of time with AOTInductor and write the package.

    The package is loaded, and its outputs on ``example_inputs`` compared with the model's in evaluation mode, before it takes
    its name. ``torch._inductor.aoti_load_package(path)`` runs it, in Python or C++, for the device that it was compiled on.

    Args:
        model: a rewritten model, or what ``rewrite`` returned. Stays as it is.
        path: where to write; ends in ``.pt2``.
        example_inputs: as ``plan``'s.
        dynamic_shapes: torch.export's: the axes whose size may vary. None: the package takes the example's sizes alone.
        inductor_configs: goes to Inductor, on top of the options of ``compile_mode``.
        compile_mode: one of torch.compile's modes ("max-autotune" and so on).
        measured: time layers that can be folded to several forms in each, as ``lower`` does; False: an estimate decides.

    Returns:
        The file's path, the form of each site, and what was compared.

    Raises:
        InputError: for a path that doesn't end in ``.pt2`` or can't be written, an unknown mode, models with nothing rewritten.
        ExportError: where torch can't export or compile the model, or the package computes something else.
    """
    check_arguments(aot, locals())
    target = Path(path)
    if target.suffix != ".pt2":
        raise InputError(f"an AOTInductor package is called something.pt2, found {str(target)!r}")
    target, configs = writable(target), inductor.of_mode(compile_mode) | dict(inductor_configs or {})
    given, inputs = model_of(model, "what aot compiles"), Inputs.of(example_inputs)
    chosen = choose_folded(given, inputs, {}) if measured else {}
    folded = fold(given, inputs, forms=estimated(given) | {name: choice.form for name, choice in chosen.items()})

    def run(inputs: Inputs) -> dict[str, object]:
        with torch.no_grad(), preserved(given, inputs.tensors()):
            return _leaves(inputs.run(given))

    expected = run(inputs)
    module = folded.model.eval()
    for part in module.modules():
        if isinstance(part, Fusing):
            part.fuses = True
    name = type(given).__name__

    def packaged_as(module: nn.Module) -> io.BytesIO:
        step("aot", "exporting the model")
        try:
            program = torch.export.export(module, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:
            raise ExportError(f"torch.export refuses this {name}: {error}") from error
        packaged = io.BytesIO()  # written here, for torch's writer may end the process where the disk is full
        step("aot", "compiling the package")
        try:
            aoti_compile_and_package(program, package_path=packaged, inductor_configs=configs)
        except Exception as error:
            raise ExportError(f"AOTInductor can't compile this {name}: {error}") from error
        return packaged

    with torch.no_grad(), preserved(module, inputs.tensors()):
        packaged = packaged_as(module)
        with replacing(target) as unchecked:
            unchecked.write_bytes(packaged.getbuffer())
            step("aot", "running the package, and comparing outputs")
            try:
                found = _leaves(aoti_load_package(str(unchecked))(*inputs.args, **inputs.kwargs))
            except Exception as error:
                raise ExportError(f"AOTInductor can't run this {name}: {error}") from error
            outputs, note = compare_outputs(expected, found, COMPILED), ""
            if not all(o.ok for o in outputs):
                outputs, note = _settled(outputs, given, inputs, module, run, packaged_as)
            check = Check(outputs, ran=True, note=note)
            if not check.ok:
                raise ExportError(f"the package computes something else than the model; nothing written.\n{check}")
    return Package(target, folded.sites, check)


def _settled(
    outputs: tuple[OutputCheck, ...],
    given: nn.Module,
    inputs: Inputs,
    module: nn.Module,
    run: Callable[[Inputs], Mapping[str, object]],
    packaged_as: Callable[[nn.Module], io.BytesIO],
) -> tuple[tuple[OutputCheck, ...], str]:
    """``outputs`` that differ, where the model is so noisy that they do though each site, in a package that gives their values
    too, is right. Raises ``ExportError`` where one is wrong."""

    def values(observed: nn.Module) -> list[torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "observed.pt2")
            file.write_bytes(packaged_as(observed).getbuffer())
            return tree_leaves(aoti_load_package(str(file))(*inputs.args, **inputs.kwargs))

    verdict = judge(given, inputs, module, values)
    if verdict.faults:
        raise ExportError(f"the package computes something else than the model: {'; '.join(verdict.faults)}; nothing written")
    return with_noise(outputs, run, inputs, roundings=verdict.roundings)


def _leaves(outputs: object) -> dict[str, object]:
    """By place: a package gives back what torch.export keeps of the outputs' structure."""
    return {
        f"output {index}": leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
        for index, leaf in enumerate(tree_leaves(outputs))
    }
