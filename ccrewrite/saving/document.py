"""recipe.json as a model: which keys it has, and what may be in them. docs/saving.md describes them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, cast

import torch
from pydantic import AfterValidator, Field, model_validator

from ccrewrite.ir.documents import Count, Document, Natural, OpenDocument
from ccrewrite.ir.geometry import ConvGeometry

FORMAT = 2
"""Of recipe.json. A later one is refused. 1, of version 0.1, had no names of sites."""


def _frozen(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, cast("list[object]", value)))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError("must be a number, a string, null, or a list of those")


Data = Annotated[object, AfterValidator(_frozen)]
"""An option's value. What a sampling's constructor takes is for its class to say."""
Tensors = dict[str, Annotated[str, Field(max_length=1000)]]


class GeometryDocument(Document):
    """A ``ConvGeometry``, whose fields agree."""

    in_channels: Count
    out_channels: Count
    kernel_size: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
    stride: tuple[Count, ...]
    padding: tuple[Natural, ...] | Literal["same"]
    dilation: tuple[Count, ...]
    groups: Count
    output_padding: tuple[Natural, ...]
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    transposed: Annotated[bool, Field(strict=True)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        ndim = len(self.kernel_size)
        for name in ("stride", "padding", "dilation", "output_padding"):
            value = getattr(self, name)
            if value != "same" and len(value) != ndim:
                raise ValueError(f"{name} must have {ndim} entries, as kernel_size has")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{name} {getattr(self, name)} can't be parted into {self.groups} groups")
        return self

    def geometry(self) -> ConvGeometry:
        return ConvGeometry(**self.model_dump())


class SamplingDocument(Document):
    """One ``Placed``."""

    site: str | None = None
    """Not in format 1."""
    module: str
    key: str | None
    layer: str
    weight: str | None
    sampling: str
    dtype: str
    geometry: GeometryDocument
    options: dict[str, Data]
    attributes: dict[str, Data]

    @model_validator(mode="after")
    def _has_a_dtype(self) -> Self:
        dtype = getattr(torch, self.dtype, None) if re.fullmatch(r"\w+", self.dtype) else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"torch has no dtype {self.dtype!r}")
        return self


class OriginalDocument(Document):
    """What was rewritten: its class, and its tensors in words."""

    kind: Annotated[str, Field(alias="class")]
    tensors: Tensors


class RecipeDocument(OpenDocument):
    """The whole. What else it has (versions, the rewrite's plan and check) is there to be read by people."""

    format: Annotated[int, Field(strict=True, ge=1, le=FORMAT)]
    geometry_only: Annotated[bool, Field(strict=True)]
    original: OriginalDocument
    samplings: tuple[SamplingDocument, ...]
    ties: tuple[tuple[str, ...], ...]
    resized: dict[str, dict[str, Data]]
    weights: dict[str, str] = Field(default_factory=dict)
    """With ``geometry_only``: digests of the original's tensors. Not in format 1."""
    sha256: str
