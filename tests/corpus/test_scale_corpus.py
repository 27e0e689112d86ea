"""Scale groups of real architectures: every free group takes other sizes, every pin is real, no site is left out.

    .venv-corpus/bin/python -m pytest tests/corpus/test_scale_corpus.py

The corpus' models that have strided or transposed convolutions, and the architectures below, so that each family that resizes
in its own way is there. Outputs must keep the shapes they had: they are dense, or a classifier's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, randn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import ScaleGroup, ScaleGroups, scale_groups
from ccrewrite.passes.scales.sizes import samplings_of
from ccrewrite.passes.scales.trials import RATIOS, Pin
from ccrewrite.passes.verify import leaves

from .models import MODELS, Example, build, redraw_
from .torchvision_shim import import_torchvision

pytestmark = [pytest.mark.slow]
WITHOUT_SITES = {"monai_highresnet3d", "tcn_causal"}
"""Corpus models with dilated convolutions alone."""
EXTRA: dict[str, Callable[[], Example]] = {}


def extra(builder: Callable[[], Example]) -> Callable[[], Example]:
    EXTRA[builder.__name__] = builder
    return builder


@extra
def hf_resnet() -> Example:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], downsample_in_first_stage=False)
    return ResNetForImageClassification(config), (randn(1, 3, 96, 96),)


@extra
def hf_convnext() -> Example:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])), (
        randn(1, 3, 96, 96),
    )


@extra
def hf_segformer() -> Example:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    widths = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    return SegformerForSemanticSegmentation(SegformerConfig(decoder_hidden_size=16, num_labels=5, **widths)), (
        randn(1, 3, 64, 96),
    )


@extra
def hf_swin() -> Example:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=64, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4)
    return SwinForImageClassification(config), (randn(1, 3, 64, 64),)


@extra
def hf_hifigan() -> Example:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    up = {"upsample_initial_channel": 32, "upsample_rates": [4, 4, 2], "upsample_kernel_sizes": [8, 8, 4]}
    blocks = {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]]}
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=10, **up, **blocks)), (randn(1, 12, 10),)


@extra
def monai_unet2d() -> Example:
    from monai.networks.nets import UNet

    model = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8, 16, 16), strides=(2, 2, 2), num_res_units=1)
    return model, (randn(1, 1, 48, 64),)


@extra
def monai_dynunet3d() -> Example:
    """The nnU-Net, with anisotropic strides."""
    from monai.networks.nets import DynUNet

    strides = [(1, 1, 1), (2, 2, 1), (2, 2, 2)]
    layers = {"kernel_size": [3, 3, 3], "strides": strides, "upsample_kernel_size": strides[1:], "filters": [4, 8, 8]}
    return DynUNet(spatial_dims=3, in_channels=1, out_channels=2, **layers), (randn(1, 1, 16, 16, 8),)


@extra
def pcv_mobilenetv3() -> Example:
    """Inverted residuals with squeeze-and-excitation gates."""
    from pytorchcv.model_provider import get_model

    return get_model("mobilenetv3_small_w7d20", pretrained=False), (randn(1, 3, 224, 224),)


class Case:
    def __init__(self, name: str) -> None:
        if name in EXTRA:
            import_torchvision()
            torch.manual_seed(0)
            model, self.inputs = EXTRA[name]()
            redraw_(model)
        else:
            model, self.inputs = build(name)
        self.model = ccrewrite.rewrite(model.eval(), self.inputs, verify=False).model
        self.native = self.run()
        self.groups: ScaleGroups = scale_groups(self.model, self.inputs)

    def run(self) -> dict[str, Any]:
        torch.manual_seed(0)
        with torch.no_grad():
            return dict(leaves(self.model(*self.inputs), "output"))

    def sizes(self) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        handles = [
            s.register_forward_hook(lambda m, a, out, n=n, d=s.ndim: sizes.__setitem__(n, tuple(cast(Tensor, out).shape[-d:])))
            for n, s in samplings_of(self.model).items()
        ]
        self.run()
        for handle in handles:
            handle.remove()
        return sizes

    def force(self, group: ScaleGroup, axis: int, pin: Pin) -> None:
        """Set a pinned axis of a group to the size that was tried, in all of its sites, and let the others follow."""
        groups = self.groups
        roots = groups.ties.size(groups.run.sites[group.sites[0]].symbols[axis]).free_symbols
        root = next(r for r in roots if groups.pins.get(r) == pin)
        # Axes that fail together only have one failure.
        together = {r: p.tried for r, p in groups.pins.items() if p.failure == pin.failure}
        known = groups.ties.resolve({**together, root: pin.tried}, groups.pins)
        for name, sampling in samplings_of(self.model).items():
            sampling.output_size = tuple(known[s] for s in groups.run.sites[name].symbols)


@pytest.fixture(scope="module", params=[*EXTRA, *(n for n in MODELS if n not in WITHOUT_SITES)])
def case(request: pytest.FixtureRequest) -> Case:
    case = Case(request.param)
    print(request.param, case.groups, sep="\n")  # noqa: T201 (shown by pytest -rP)
    return case


def test_no_site_is_without_a_group(case: Case) -> None:
    assert sorted(s for g in case.groups for s in g.sites) == sorted(samplings_of(case.model))


def test_every_free_group_really_takes_other_sizes(case: Case) -> None:
    for group in case.groups.free:
        for ratio in RATIOS:
            with resized(case.model, {group.name: ratio}):
                outputs, sizes = case.run(), case.sizes()
            for site, native in zip(group.sites[:1], group.native, strict=False):
                assert sizes[site] == tuple(max(1, round(n * ratio)) for n in native)
            _as_large_and_finite(outputs, case.native)
    _as_large_and_finite(case.run(), case.native)


def test_every_pin_is_real(case: Case) -> None:
    for group in case.groups:
        for axis, pin in enumerate(group.pins):
            if pin is None:
                continue
            with pytest.raises(InputError, match="pinned by"), resized(case.model, {group.name: 0.5}, case.inputs):
                pass
            case.force(group, axis, pin)
            try:
                outputs = case.run()
                assert {p: _shape(v) for p, v in outputs.items()} != {p: _shape(v) for p, v in case.native.items()}, (
                    group,
                    axis,
                )
            except (RuntimeError, ValueError):
                pass
            finally:
                for sampling in samplings_of(case.model).values():
                    sampling.output_size = None


def _as_large_and_finite(outputs: dict[str, Any], native: dict[str, Any]) -> None:
    assert {p: _shape(v) for p, v in outputs.items()} == {p: _shape(v) for p, v in native.items()}
    assert all(bool(v.isfinite().all()) for v in outputs.values() if isinstance(v, Tensor) and v.is_floating_point())


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value
