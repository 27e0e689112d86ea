"""``lower``: a compiled model in which every site runs in its cheapest form."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

from torch import nn

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.adapters import require_merged
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir import typed
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import Check
from ccrewrite.ir.choice import Choice
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import site_calls
from ccrewrite.lowering.check import checked
from ccrewrite.lowering.choose import check_forced, choose, choose_folded
from ccrewrite.lowering.lowered import Lowered, LoweredSite
from ccrewrite.lowering.observed import judge
from ccrewrite.lowering.sites import compile_sites_, eager, judge_alone, release_
from ccrewrite.passes.fold import fold
from ccrewrite.passes.fold.choose import estimated
from ccrewrite.passes.judging import Verdict
from ccrewrite.passes.scales.resize import without_wrapper


def lower(
    model: GivenModel,
    example_inputs: object,
    *,
    mode: Literal["inference", "training"] = "inference",
    scope: Literal["model", "sites"] = "model",
    forms: Mapping[str, str] | None = None,
    measured: bool = True,
    verify: bool = True,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    options: Mapping[str, object] | None = None,
    compile_mode: str | None = None,
) -> Lowered:
    """Compile a rewritten model with torch.compile and Inductor, every site in the cheapest form for its shapes.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        example_inputs: as ``plan``'s. Forms are chosen for their sizes; others run too.
        mode: "inference" gives a copy without learnable geometry (``ccrewrite.fold``), so that no kernel is built at run time;
            later changes of ``model`` don't reach it. "training": ``model`` itself, with its parameters; each site's choice is
            written to ``sampling.form``, which eager code ignores where the form only pays when compiled.
        scope: "model", or "sites": only the rewritten layers are compiled, in place, each where that pays.
            ``result.model is model``, which runs eagerly else, with its own parameters, hooks and classes. Layers that are
            alike are compiled once. They run compiled at the sizes that ``example_inputs`` give them, and eagerly at others.
            Nothing is folded in either mode, and ``revert``, ``save``, copies and wrappers work as before. Each kind of layer
            is timed compiled and as eager code, and one that isn't faster compiled has the form "eager": it is left as it was.
        forms: forces a choice: site name -> form, one of ``sampling.forms`` in training, in inference "dense" or what
            ``ccrewrite.passes.fold.alternatives`` says.
        measured: compile and time the forms of each site on this device; the times are kept on disk
            (``ccrewrite.lowering.times.cache_file``). False: an estimate decides.
        verify: run the compiled model once on ``example_inputs``, and compare its outputs with those of ``model``
            (``result.check``): for "inference" in evaluation mode, for "training" as ``model`` stands. A warning says where
            they differ. False: nothing but what is timed is compiled before the first call.
        dynamic: torch.compile's.
        fullgraph: torch.compile's.
        options: torch.compile's. A ``post_grad_custom_pre_pass`` of yours, among them or in Inductor's configuration, runs
            after ours. Forms are timed without any of them.
        compile_mode: torch.compile's ``mode`` ("max-autotune" and so on).

    Returns:
        The compiled model (``model``), each site's form, and what was compared (``check``).

    Raises:
        InputError: for an unknown mode, option, site or form, and where nothing in ``model`` was rewritten.
        ModelRunError: where the model can't run on ``example_inputs``, or torch can't compile it.

    >>> import ccrewrite, torch
    >>> model, x = nn.Conv2d(8, 8, 3, dilation=4, padding=4), torch.randn(1, 8, 16, 16)
    >>> lowered = lower(ccrewrite.rewrite(model, x), x, mode="training", measured=False, verify=False)
    >>> [(site.name, site.message) for site in lowered]
    [('(root)', 'estimated, the cheapest')]
    """
    check_arguments(lower, locals())
    given, inputs = model_of(model, "what lower compiles"), Inputs.of(example_inputs)
    given = without_wrapper(given, compiled_alone=mode == "training")  # which may stay parallel, to be trained
    known = rewritten_sites(given)
    if not known:
        raise InputError(
            f"nothing in this {type(given).__name__} was rewritten, so there is nothing to lower; use torch.compile"
        )
    if mode == "inference":
        require_merged(given, known.values(), "lower")
    forced = dict(forms or {})
    unknown = forced.keys() - known.keys()
    if unknown:
        raise InputError(f"forms names {', '.join(sorted(unknown))}; the rewritten sites are {', '.join(known)}")
    skipped = Check((), ran=False, note="verify=False")
    training = mode == "training"
    if scope == "sites":
        if dynamic is not None or fullgraph or options or compile_mode:
            raise InputError(
                'dynamic, fullgraph, options and compile_mode are for scope="model"; with scope="sites" each layer is compiled '
                "by itself"
            )
        samplings = {name: site.sampling for name, site in known.items()}
        step("lower", f"compiling {len(known)} layers")
        sites = compile_sites_(given, inputs, samplings, forced, training=training, measured=measured)
        before = functools.partial(eager, samplings.values())
        try:
            judge_sites = functools.partial(judge_alone, given, inputs, samplings.values(), gradients=training)
            check = checked(given, given, inputs, training=training, given=before, judge=judge_sites) if verify else skipped
        except ModelRunError:
            release_(samplings.values())
            raise
        return Lowered(given, mode, sites, check)
    prepare = _for_training_ if mode == "training" else _for_inference
    every = inductor.options(options, compile_mode)
    prepared, sites = prepare(given, inputs, forced, measured)
    try:
        compiled = typed.compiled(prepared, dynamic=dynamic, fullgraph=fullgraph, options=every)
    except RuntimeError as error:
        raise InputError(f"torch.compile refuses these options: {error}") from error
    step("lower", "compiling the model, and comparing outputs")

    def judged() -> Verdict:
        def run(module: nn.Module) -> object:
            return typed.compiled(module, dynamic=dynamic, options=every)(*inputs.args, **inputs.kwargs)

        return judge(given, inputs, prepared, run, gradients=training)

    check = checked(compiled, given, inputs, training=training, judge=judged) if verify else skipped
    return Lowered(compiled, mode, sites, check)


Prepared = tuple[nn.Module, tuple[LoweredSite, ...]]


def _for_inference(model: nn.Module, inputs: Inputs, forced: Mapping[str, str], measured: bool) -> Prepared:
    """The folded model, and what each of its sites became."""
    chosen = choose_folded(model, inputs, forced) if measured else {}
    measured_forms = {name: choice.form for name, choice in chosen.items()}
    folded = fold(model, inputs, forms=estimated(model) | measured_forms | dict(forced))

    def choice(name: str) -> Choice:
        return Choice("", "forced", {}) if name in forced else chosen.get(name, Choice("", "folded", {}))

    sites = ((s, choice(s.name)) for s in folded.sites)
    lowered = tuple(LoweredSite.chosen(s.name, s.code, c.how, c.seconds, s.message) for s, c in sites)
    return folded.model.eval(), lowered


def _for_training_(model: nn.Module, inputs: Inputs, forced: Mapping[str, str], measured: bool) -> Prepared:
    """``model`` itself, whose samplings now know their forms, and those."""
    samplings = {name: site.sampling for name, site in rewritten_sites(model).items()}
    check_forced(forced, samplings)
    chosen = choose(site_calls(model, inputs, samplings), forced, measured)
    for name, sampling in samplings.items():
        sampling.opaque = True
        sampling.form = chosen[name].form if name in chosen else forced.get(name)
    waiting = {n: Choice(s.form or s.default_form, "not run", {}) for n, s in samplings.items() if n not in chosen}
    every = {name: chosen.get(name) or waiting[name] for name in samplings}
    return model, tuple(LoweredSite.chosen(n, c.form, c.how, c.seconds) for n, c in every.items())
