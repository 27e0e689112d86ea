"""report.json as a model: what readers rely on. docs/report-schema.json says the same, and what entries mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ccrewrite.ir.documents import OpenDocument
from ccrewrite.ir.json_types import JsonObject

Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Sizes = list[Whole]


class Timing(OpenDocument):
    median_s: Positive
    q1_s: Positive
    q3_s: Positive
    ratio: Positive
    ratio_low: Positive
    ratio_high: Positive


class Parameters(OpenDocument):
    total: Whole
    trainable: Whole
    added: Whole


class Output(OpenDocument):
    path: str
    dtype: str
    shape: Sizes
    max_abs_error: Number | None
    mean_abs_error: Number | None
    max_rel_error: Number | None
    flips: Whole
    note: str


class ReceptiveField(OpenDocument):
    """The receptive field of an output's centre."""

    output: str
    input_size: Sizes
    extent: list[Number]
    rms: list[Number]


class Variant(OpenDocument):
    name: str
    parameters: Parameters
    flops: dict[str, Whole]
    memory_bytes: dict[str, Whole]
    latency: dict[str, Timing]
    outputs: list[Output]
    receptive_field: ReceptiveField | None
    notes: list[str] = Field(default_factory=list)


class Errors(OpenDocument):
    max_abs_error: Number
    mean_abs_error: Number
    max_rel_error: Number


class Distance(OpenDocument):
    mean: Number
    max: Number


class Learnt(OpenDocument):
    window: Sizes
    drift: list[dict[str, Number]] = Field(default_factory=list[dict[str, Number]])
    distance: Distance | None = None
    kernel: JsonObject
    extent: JsonObject


class SiteVariant(OpenDocument):
    sampling: str | None
    added_parameters: Whole
    flops: dict[str, Whole]
    latency: dict[str, Timing]
    error: dict[str, Errors | None]
    learnt: Learnt | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        require(self.flops, "flops", "inference")
        require(self.latency, "latency", "inference")
        require(self.error, "error", "local", "propagated")
        return self


class Site(OpenDocument):
    name: str
    layer: str
    described: str
    variants: dict[str, SiteVariant]

    @model_validator(mode="after")
    def _has_the_original(self) -> Self:
        require(self.variants, "variants", "original")
        return self


class Batch(OpenDocument):
    batch: Whole
    latency: dict[str, Timing]


class Input(OpenDocument):
    shape: Sizes
    dtype: str


class Environment(OpenDocument):
    date: str
    device: str
    cpu: str
    threads: Whole
    versions: dict[str, str]
    git_revision: str | None


class Settings(OpenDocument):
    quick: bool
    confidence: Number


class Group(OpenDocument):
    name: str
    sites: list[str]
    native: list[Sizes]
    relations: list[str]
    pins: list[str | None]


class Groups(OpenDocument):
    note: str = ""
    groups: list[Group]


class Point(OpenDocument):
    name: str
    gflops: Number
    latency_ms: Number
    latency_iqr_ms: Number
    score: Number | None


class Trade(OpenDocument):
    points: list[Point]


class Expected(OpenDocument):
    """An estimate with its interval."""

    mean: Number
    low: Number
    high: Number


class ForecastSite(OpenDocument):
    name: str
    code: str
    gain: Expected | None
    added_seconds: Number | None
    parameters: Whole | None


class Forecast(OpenDocument):
    verdict: Literal["pays", "does not pay", "unclear"]
    why: str
    seconds: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    sites: list[ForecastSite]


class Report(OpenDocument):
    """The whole."""

    version: Annotated[Literal["ccrewrite-report/1"], Field(alias="schema")]
    command: str
    environment: Environment
    settings: Settings
    model: str
    inputs: list[Input]
    variants: Annotated[list[Variant], Field(min_length=2)]
    sites: list[Site]
    batches: list[Batch] = Field(default_factory=list[Batch])
    scale_groups: Groups | None = None
    trade: Trade | None = None
    forecast: Forecast | None = None

    @model_validator(mode="after")
    def _has_both_models(self) -> Self:
        require([v.name for v in self.variants], "variants", "original", "rewritten")
        return self


def require(found: Iterable[str], what: str, *names: str) -> None:
    """Raise ``ValueError`` where one of ``names`` is missing."""
    if missing := set(names) - set(found):
        raise ValueError(f"{what} must have {', '.join(sorted(missing))}")
