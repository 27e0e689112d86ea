"""The one call: ``plan``, ``rewrite``, ``rewrite_``, ``revert``, ``verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.export import ExportedProgram

from ccrewrite.errors import InputError, SelectionError
from ccrewrite.ir.capture import How, Inputs, Model, as_module, capture
from ccrewrite.ir.check import Check
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, Outcome, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.sites import Plan, Site
from ccrewrite.ir.wrappers import require_bare, require_trainable, unwrapped
from ccrewrite.passes.carry_out import carry_out_
from ccrewrite.passes.decide import Patterns, Selection, decide, prepare
from ccrewrite.passes.detect import detect
from ccrewrite.passes.rules import Rules, check_rules
from ccrewrite.passes.substitute import copied, revert_, substitute_
from ccrewrite.passes.verify import compare_outputs, outputs_of


@dataclass(frozen=True)
class Result(Outcome[Site]):
    """What ``rewrite`` returns: the rewritten model, the plan as carried out, and the verification."""

    model: nn.Module
    plan: Plan
    check: Check

    @property
    def sites(self) -> tuple[Site, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The plan's."""
        return self.plan.sites

    def rows(self) -> list[dict[str, str]]:
        return self.plan.rows()

    def shown(self) -> list[dict[str, str]]:
        return self.plan.shown()

    def summary(self) -> str:
        return self.plan.summary()

    def to_dict(self) -> JsonObject:
        """As plain data: ``{"plan", "check"}``."""
        return {"plan": self.plan.to_dict(), "check": self.check.to_dict()}


def plan(
    model: Model,
    example_inputs: object,
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    how: How = "auto",
    costs: bool | Literal["eager", "lowered", "estimated"] = False,
) -> Plan:
    """What ``rewrite`` would do with each convolution that ``model(example_inputs)`` runs. Touches nothing.

    Args:
        model: any module, or an ``ExportedProgram``. Of one that is wrapped (``torch.compile``, ``DataParallel``) the model
            inside is meant.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, of shapes and dtypes that the
            model takes and on its device.
        rules: an ordered list of rules (objects, names, or mappings as in a TOML file), or a mapping of patterns of site names
            to rules, where the first pattern that hits a site counts, and None leaves it alone. None: the families' default
            rules.
        include: patterns of site names (names, globs, ``re:...``), or a predicate on the ``Site``. None: all sites.
        exclude: the same, for sites to be left alone.
        kinds: some of "dilated", "strided", "transposed", "large", "plain". None: all.
        how: the way of capturing, "export" or "observe"; "auto": the first, or where that fails the second.
        costs: also what each rewritten site costs once it has moved (``Plan.costs``), in seconds, FLOPs and bytes. True or
            "lowered" times it compiled, in the form that ``lower`` takes, in seconds a site; "eager" without a compiler, in
            tenths of a second; "estimated" tells from the shapes alone. Takes a copy of the model in memory.

    Returns:
        A decision for each site, with its reason.

    Raises:
        InputError: for arguments that can't be used.
        ModelRunError: where the model raises on the inputs.
        SelectionError: where ``include``, ``exclude`` and ``kinds`` leave no site.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, dilation=2))
    >>> [(site.name, site.kinds, site.decision.code) for site in plan(model, torch.zeros(1, 3, 16, 16))]
    [('0', ('strided',), 'strided-to-cc'), ('1', ('dilated',), 'dilated-to-dcls')]
    """
    check_arguments(plan, locals())
    module, inputs = unwrapped(as_module(model)), Inputs.of(example_inputs)
    planned = _plan(module, inputs, rules, Selection(include, exclude, kinds), how)
    if costs is False:
        return planned
    from ccrewrite.lowering.expenses import with_costs  # Inductor, which only those pay who ask

    return with_costs(planned, module, inputs, "lowered" if costs is True else costs)


def rewrite(
    model: Model,
    example_inputs: object,
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    verify: bool | Literal["outputs"] = True,
    how: How = "auto",
) -> Result:
    """A copy of ``model`` whose dilated, strided and transposed convolutions are learnable layers that compute the same.

    Args:
        model: as ``plan``'s. Of one that is wrapped, the model inside is copied: compile or wrap the result.
        example_inputs: as ``plan``'s.
        rules: as ``plan``'s.
        include: as ``plan``'s.
        exclude: as ``plan``'s.
        kinds: as ``plan``'s.
        verify: compare the copy's outputs with the original's on ``example_inputs``, and the gradients of its inputs and
            weights, in one backward pass of each; a site that changes them is put back. "outputs" leaves gradients out.
        how: as ``plan``'s.

    Returns:
        The copy (``model``), the plan as carried out (``plan``), and what was compared (``check``).

    Raises:
        InputError: for arguments that can't be used.
        ModelRunError: where the model raises on the inputs.
        SelectionError: where nothing is selected, or nothing can be rewritten.

    >>> import torch
    >>> model, x = nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16)
    >>> result = rewrite(model, x)
    >>> result.check.ok, result.check.max_abs_error, type(result.model).__name__, type(model).__name__
    (True, 0.0, 'DclsConv2d', 'Conv2d')
    """
    check_arguments(rewrite, locals())
    module, inputs = unwrapped(as_module(model)), Inputs.of(example_inputs)
    planned = _plan(module, inputs, rules, Selection(include, exclude, kinds), how)
    return _rewritten(copied(module) if planned.rewritten else module, module, planned, inputs, verify)


def rewrite_(
    model: Model,
    example_inputs: object,
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    verify: bool | Literal["outputs"] = True,
    how: How = "auto",
) -> Result:
    """``rewrite`` in place: ``result.model`` is ``model``.

    Args:
        model: a module that is not wrapped. Where this raises, it is as it was.
        example_inputs: as ``plan``'s.
        rules: as ``plan``'s.
        include: as ``plan``'s.
        exclude: as ``plan``'s.
        kinds: as ``plan``'s.
        verify: as ``rewrite``'s.
        how: as ``plan``'s.

    Returns:
        As ``rewrite``.

    Raises:
        InputError: for arguments that can't be used, a model that is wrapped, and an ``ExportedProgram``.
        ModelRunError: where the model raises on the inputs.
        SelectionError: where nothing is selected, or nothing can be rewritten.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2))
    >>> rewrite_(model, torch.randn(1, 3, 16, 16)).model is model, type(model[0]).__name__
    (True, 'DclsConv2d')
    """
    check_arguments(rewrite_, locals())
    if isinstance(model, ExportedProgram):
        raise InputError("rewrite_ changes a module in place, found an ExportedProgram; rewrite takes it")
    module, inputs = model_of(model, "what rewrite_ changes in place"), Inputs.of(example_inputs)
    require_trainable(require_bare(module, "rewrite_"), "rewrite_")
    planned = _plan(module, inputs, rules, Selection(include, exclude, kinds), how)
    return _rewritten(module, None, planned, inputs, verify)


def revert(model: GivenModel) -> nn.Module:
    """Put the original layers and calls back, in place, with the weights as they are now. What the added geometry had learnt is
    dropped.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.

    Returns:
        The model.

    Raises:
        InputError: where nothing in ``model`` was rewritten, or it is wrapped.

    >>> import torch
    >>> result = rewrite(nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16))
    >>> type(result.model).__name__, type(revert(result)).__name__
    ('DclsConv2d', 'Conv2d')
    """
    module = require_bare(model_of(model, "what revert changes back"), "revert")
    from ccrewrite.passes.scales.resize import resize_  # sympy, which only those pay who revert

    resize_(module, None)
    if not revert_(module):
        raise InputError(f"nothing in this {type(module).__name__} was rewritten")
    return module


def verify(original: Model, rewritten: Model, example_inputs: object) -> Check:
    """Compare the outputs of two models, of any structure, on the same inputs and random state, in evaluation mode.

    Args:
        original: any module, or an ``ExportedProgram``.
        rewritten: the one to compare with it.
        example_inputs: as ``plan``'s.

    Returns:
        A row for each output, in order: shapes, dtypes, the largest errors. ``ok`` where all are within rounding.

    Raises:
        InputError: for arguments that can't be used.
        ModelRunError: where a model raises on the inputs.

    >>> import torch
    >>> model, x = nn.Conv2d(3, 8, 3), torch.randn(1, 3, 16, 16)
    >>> verify(model, model, x).ok, verify(model, nn.Conv2d(3, 8, 3), x).ok
    (True, False)
    """
    before, after, inputs = as_module(original), as_module(rewritten), Inputs.of(example_inputs)
    return Check(compare_outputs(outputs_of(before, inputs), outputs_of(after, inputs)), ran=True)


def _plan(model: nn.Module, inputs: Inputs, rules: Rules, selection: Selection, how: How) -> Plan:
    checked = check_rules(rules)
    step("plan", f"running the {type(model).__name__} to see its convolutions")
    program = capture(model, inputs, how)
    sites = detect(model, program)
    ready = prepare(model, sites, checked, selection)
    return Plan(decide(sites, ready, selection), ready, program.how, program.note)


def _rewritten(
    model: nn.Module, original: nn.Module | None, planned: Plan, inputs: Inputs, check: bool | Literal["outputs"]
) -> Result:
    if not planned.rewritten:
        raise SelectionError(
            f"nothing to rewrite: {planned.summary()}. print(ccrewrite.plan(model, inputs)) shows why, site by site"
        )
    if check:
        return Result(model, *carry_out_(model, original, planned, inputs, gradients=check != "outputs"))
    substitute_(model, planned.rewritten, planned.rules)
    return Result(model, planned, Check((), ran=False, note="verify=False"))
