"""What internal sizes cost and give: ``trade`` tabulates FLOPs, latency and accuracy of one model over settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast, overload

import torch
from tabulate import tabulate
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.progress import step
from ccrewrite.ir.spent import flops_of
from ccrewrite.ir.timing import Case, Effort, time_cases
from ccrewrite.ir.written import replacing
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import Settings, require_sites
from ccrewrite.training.axes import Axes, Drawn

NATIVE = "native"


@dataclass(frozen=True)
class TradePoint:
    """One setting: ``gflops`` of one call (10^9 floating point operations; a multiply-add is two), ``latency_ms`` its median
    duration, ``latency_iqr_ms`` the interquartile range, ``score`` what the evaluation gave."""

    name: str
    settings: JsonObject
    gflops: float
    latency_ms: float
    latency_iqr_ms: float
    score: float | None


class Trade(Sequence[TradePoint]):
    """The points, in the order of the settings, the native one first. ``print`` it, ``to_json()`` it, ``plot`` it."""

    def __init__(self, points: Sequence[TradePoint], device: str) -> None:
        self._points = tuple(points)
        self.device = device

    @overload
    def __getitem__(self, key: int | str) -> TradePoint: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[TradePoint, ...]: ...
    def __getitem__(self, key: int | str | slice) -> TradePoint | tuple[TradePoint, ...]:
        """By position or by name."""
        return next(p for p in self if p.name == key) if isinstance(key, str) else self._points[key]

    def __len__(self) -> int:
        return len(self._points)

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column."""
        native = self[0]
        return [
            {
                "setting": p.name,
                "GFLOPs": f"{p.gflops:.3g}",
                "FLOPs / native": f"{p.gflops / native.gflops:.2f}" if native.gflops else "",
                "ms (median)": f"{p.latency_ms:.3g}",
                "IQR": f"{p.latency_iqr_ms:.2g}",
                "time / native": f"{p.latency_ms / native.latency_ms:.2f}",
                "score": "" if p.score is None else f"{p.score:.4g}",
            }
            for p in self
        ]

    def to_json(self) -> str:
        """``{"device", "torch", "points": [{"name", "settings", "gflops", "latency_ms", "latency_iqr_ms", "score"}]}``."""
        points = [asdict(p) for p in self]
        return json.dumps({"device": self.device, "torch": torch.__version__, "points": points}, indent=2)

    def __str__(self) -> str:
        return f"{self._table('simple')}\n{self.device}, torch {torch.__version__}"

    def _repr_html_(self) -> str:
        return f"{self._table('html')}<p>{self.device}, torch {torch.__version__}</p>"

    def _table(self, tablefmt: str) -> str:
        rows = [{k: v for k, v in row.items() if k != "score" or self[0].score is not None} for row in self.rows()]
        return tabulate(rows, headers="keys", tablefmt=tablefmt, disable_numparse=True)

    def plot(self, path: str | Path) -> None:
        """Draw score over latency (GFLOPs over latency without scores) to ``path``; needs matplotlib.

        Raises ``InputError`` where matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InputError("a plot needs matplotlib: pip install matplotlib") from error
        scored = self[0].score is not None
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = cast(Axes, figure.subplots())
        x, spread = [p.latency_ms for p in self], [p.latency_iqr_ms / 2 for p in self]
        y = [p.score if p.score is not None else p.gflops for p in self]
        axes.errorbar(x, y, xerr=spread, fmt="o", capsize=3)
        for point, left, height in zip(self, x, y, strict=True):
            axes.annotate(point.name, (left, height), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.set_xlabel(f"latency, ms (median, interquartile range; {self.device})")
        axes.set_ylabel("score" if scored else "GFLOPs")
        axes.grid(alpha=0.3)
        with replacing(path) as file:
            cast(Drawn, figure).savefig(file)


def trade(
    model: GivenModel,
    example_inputs: object,
    settings: Mapping[str, Settings] | Sequence[Settings],
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    repeats: int = 20,
) -> Trade:
    """FLOPs and latency of a rewritten model on ``example_inputs`` at each of ``settings`` and natively, and its score.

    ``settings`` are those of ``resize_``, by name or in a row. ``evaluate(model)`` is called once for each of them, with the
    model at these sizes and in its own training mode; whatever number it gives is the score. Latencies are measured in
    evaluation mode without gradients, in ``repeats`` rounds: each round calls every setting once, so that a disturbance meets
    all of them.

    Raises what ``resize_`` raises.

    >>> import ccrewrite
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 64, 3), nn.AdaptiveAvgPool2d(1))
    >>> x = torch.randn(1, 3, 32, 32)
    >>> table = trade(ccrewrite.rewrite(model, x).model, x, {"half": {"0": 0.5}}, repeats=2)
    >>> [p.name for p in table], table["half"].gflops < table["native"].gflops
    (['native', 'half'], True)
    """
    model, inputs = model_of(model), Inputs.of(example_inputs)
    require_sites(model)
    named = dict(settings) if isinstance(settings, Mapping) else {_name(s): s for s in settings}
    if NATIVE in named or len(named) != len(settings):
        raise InputError(f"settings need names of their own, none of them {NATIVE!r}; found {', '.join(map(_name, settings))}")
    if repeats < 2:
        raise InputError(f"repeats must be at least 2 to show a spread, found {repeats}")
    every: dict[str, Settings] = {NATIVE: {}, **named}

    def run() -> object:
        return inputs.run(model)

    flops: dict[str, int] = {}
    with unwatched([model], inputs.tensors()), torch.no_grad():
        for name, setting in every.items():
            with resized(model, setting, inputs):
                flops[name] = flops_of(run)
        step("trade", f"timing {len(every)} settings", 0.1)
        cases = {name: Case(run, partial(resized, model, setting, inputs), NATIVE) for name, setting in every.items()}
        times = time_cases(cases, Effort(0, (repeats, repeats), 0), cuda=_on_gpu(inputs))
    scores: dict[str, float | None] = dict.fromkeys(every)
    if evaluate is not None:
        for done, (name, setting) in enumerate(every.items()):
            step("trade", f"evaluating {name}", 0.5 + 0.5 * done / len(every))
            with resized(model, setting):
                scores[name] = float(evaluate(model))
    points: list[TradePoint] = []
    for name, setting in every.items():
        t = times[name]
        spread = t.q3_s - t.q1_s
        points.append(TradePoint(name, dict(setting), flops[name] / 1e9, 1e3 * t.median_s, 1e3 * spread, scores[name]))
    return Trade(points, _device(inputs))


def _name(setting: Settings | str) -> str:
    if isinstance(setting, str):
        return setting
    ratios = ((k, v if isinstance(v, Sequence) else (v,)) for k, v in setting.items())
    return ", ".join(f"{k} {'x'.join(f'{r:g}' for r in v)}" for k, v in ratios) or NATIVE


def _on_gpu(inputs: Inputs) -> bool:
    return any(t.is_cuda for t in inputs.tensors())


def _device(inputs: Inputs) -> str:
    if _on_gpu(inputs):
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
