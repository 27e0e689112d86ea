"""Fifteen third-party models, built offline in eval mode on the CPU: what the rewriter meets outside its own tests.

    python -m corpus.models        (from tests/) builds and runs all of them

Small widths keep each within a second; the layers, paddings, subclasses and control flow are the packages' own. A fresh model
hides many of its convolutions behind zero-initialised heads, unit norms and layer scales of 1e-6, so ``build`` redraws every
weight: an error at any convolution then shows in the outputs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, randn

from .torchvision_shim import import_torchvision

os.environ["HF_HUB_OFFLINE"] = "1"

Example = tuple[nn.Module, tuple[Tensor, ...]]
MODELS: dict[str, Callable[[], Example]] = {}
GAIN = 0.8
"""A layer's output scale over its input's. At 1 residual sums grow until the audio codecs amplify rounding a thousandfold; at
0.7 the depth model's last ReLU lets nothing through."""


def build(name: str, seed: int = 0) -> Example:
    """The model called ``name`` and its example inputs, the same ones for the same seed."""
    import_torchvision()
    torch.manual_seed(seed)
    model, inputs = MODELS[name]()
    redraw_(model)
    return model.eval(), inputs


@torch.no_grad()
def redraw_(model: nn.Module) -> None:
    """Draw convolution and linear weights so that each layer about keeps its input's scale, and jitter whatever is constant.

    Parametrised weights are assigned, so that the parametrisation sets its own tensors.
    """
    layers = nn.modules.conv._ConvNd, nn.Linear
    weights = {m.weight: m for m in model.modules() if isinstance(m, layers)}
    for old, module in weights.items():
        new = torch.randn_like(old) * GAIN / math.sqrt(_fan_in(module))
        if isinstance(old, nn.Parameter):
            old.copy_(new)
        else:
            module.weight = new
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and _constant(parameter):
            parameter.add_(torch.rand_like(parameter) / 4 + 0.01)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        for name, codebook in module.named_buffers(recurse=False):
            if name == "embed" and _constant(codebook):
                codebook.normal_()


def _fan_in(module: Any) -> float:
    """Products that one output sums up."""
    weight: Any = module.weight
    if getattr(module, "transposed", False):
        return weight[:, 0].numel() / (module.groups * math.prod(module.stride))
    return weight[0].numel()


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def corpus_model(builder: Callable[[], Example]) -> Callable[[], Example]:
    MODELS[builder.__name__] = builder
    return builder


# transformers


@corpus_model
def hf_mobilenetv2_deeplab() -> Example:
    """DeepLabV3+ head on MobileNetV2: TF-style padding computed in forward, depthwise and dilated layers."""
    from transformers import MobileNetV2Config
    from transformers import MobileNetV2ForSemanticSegmentation as Net

    config = MobileNetV2Config(depth_multiplier=0.35, output_stride=8, tf_padding=True, num_labels=5)
    return Net(config), (randn(1, 3, 65, 65),)


@corpus_model
def hf_dac_weightnorm() -> Example:
    """Audio codec, every convolution weight-normed."""
    from transformers import DacConfig, DacModel

    codebooks = {"n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4}
    ratios = {"downsampling_ratios": [2, 3], "upsampling_ratios": [3, 2]}
    model = DacModel(DacConfig(encoder_hidden_size=8, decoder_hidden_size=64, **ratios, **codebooks))
    model.apply_weight_norm()
    return model, (randn(1, 1, 600),)


@corpus_model
def hf_encodec() -> Example:
    """Audio codec: reflect and asymmetric pads from ``self.conv.stride``, weight norm, an LSTM, integer codes out."""
    from transformers import EncodecConfig, EncodecModel

    layers = {"num_filters": 8, "num_residual_layers": 2, "dilation_growth_rate": 2, "num_lstm_layers": 1}
    codebooks = {"hidden_size": 32, "codebook_dim": 32, "codebook_size": 64, "target_bandwidths": [24.0]}
    return EncodecModel(EncodecConfig(upsampling_ratios=[4, 3, 2], **layers, **codebooks)), (randn(1, 1, 1201),)


@corpus_model
def hf_univnet() -> Example:
    """Vocoder: reflect padding mode, weight norm, location-variable convolutions. Second input: the noise."""
    from transformers import UnivNetConfig, UnivNetModel

    blocks = {
        "resblock_stride_sizes": [4, 2],
        "resblock_kernel_sizes": [3, 3],
        "resblock_dilation_sizes": [[1, 3], [1, 3]],
    }
    predictor = {"kernel_predictor_num_blocks": 1, "kernel_predictor_hidden_channels": 8}
    model = UnivNetModel(UnivNetConfig(model_in_channels=8, model_hidden_channels=8, num_mel_bins=10, **blocks, **predictor))
    model.apply_weight_norm()
    return model, (randn(1, 10, 10), randn(1, 10, 8))


@corpus_model
def hf_wav2vec2() -> Example:
    """Speech encoder: strided front end, an even grouped positional kernel with weight norm, a strided adapter."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    front = {
        "num_feat_extract_layers": 4,
        "conv_dim": [16, 16, 16, 16],
        "conv_kernel": [10, 3, 3, 2],
        "conv_stride": [5, 2, 2, 2],
    }
    encoder = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    position = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return Wav2Vec2Model(Wav2Vec2Config(add_adapter=True, **front, **encoder, **position)), (randn(1, 1600),)


@corpus_model
def hf_bit() -> Example:
    """Big Transfer: ``nn.Conv2d`` subclasses that standardise their weight in their own forward, SAME padding."""
    from transformers import BitConfig, BitForImageClassification

    widths = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_groups": 4}
    config = BitConfig(layer_type="bottleneck", global_padding="SAME", output_stride=16, **widths)
    return BitForImageClassification(config), (randn(1, 3, 65, 65),)


@corpus_model
def hf_dpt_depth() -> Example:
    """Depth from a vision transformer: kernels as large as their stride, channels_last tensors, layers never called."""
    from transformers import DPTConfig, DPTForDepthEstimation

    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
    return DPTForDepthEstimation(DPTConfig(image_size=64, patch_size=16, **encoder, **neck)), (randn(1, 3, 64, 64),)


# MONAI


@corpus_model
def monai_unet3d() -> Example:
    """Residual U-Net in three dimensions with output padding."""
    from monai.networks.nets import UNet

    model = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2)
    return model, (randn(1, 1, 16, 16, 12),)


@corpus_model
def monai_highresnet3d() -> Example:
    """Dilated residual network in three dimensions on odd sizes."""
    from monai.networks.nets import HighResNet

    return HighResNet(spatial_dims=3, in_channels=1, out_channels=2), (randn(1, 1, 17, 16, 15),)


@corpus_model
def monai_mednext3d() -> Example:
    """MedNeXt: depthwise strided and depthwise transposed layers in three dimensions."""
    from monai.networks.nets import MedNeXt

    expansions = {f"{part}_expansion_ratio": 2 for part in ("encoder", "decoder", "bottleneck")}
    blocks = {"blocks_down": (1, 1, 1, 1), "blocks_bottleneck": 1, "blocks_up": (1, 1, 1, 1)}
    options = {"kernel_size": 3, "deep_supervision": False, "use_residual_connection": True, **expansions, **blocks}
    return MedNeXt(spatial_dims=3, init_filters=4, in_channels=1, out_channels=2, **options), (randn(1, 1, 32, 32, 32),)


@corpus_model
def monai_basicunet_odd() -> Example:
    """U-Net that replicates borders where an odd size lost a sample (symbolic_trace drops its skip connections)."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=2, in_channels=1, out_channels=2, features=(8,) * 6), (randn(1, 1, 37, 45),)


# pytorchcv


@corpus_model
def pcv_erfnet() -> Example:
    """ERFNet: 3x1 and 1x3 dilated kernels, transposed layers with output padding."""
    from pytorchcv.model_provider import get_model

    return get_model("erfnet_cityscapes", pretrained=False, in_size=(64, 64)), (randn(1, 3, 64, 64),)


@corpus_model
def pcv_sharesnet18() -> Example:
    """ShaResNet: convolutions called several times and registered under several names."""
    from pytorchcv.model_provider import get_model

    return get_model("sharesnet18", pretrained=False), (randn(1, 3, 224, 224),)


# diffusers, pytorch-tcn


@corpus_model
def diffusers_unet1d() -> Example:
    """Diffusion U-Net over sequences: six functional convolutions whose weight is written in forward from a buffer."""
    from diffusers import UNet1DModel

    time = {"time_embedding_type": "fourier", "flip_sin_to_cos": True, "use_timestep_embedding": False}
    blocks = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        "mid_block_type": "UNetMidBlock1D",
        "up_block_types": ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    }
    # The first block takes the 2 channels and the time embedding, 64 here whatever the sample's length.
    channels = {"in_channels": 2, "out_channels": 2, "extra_in_channels": 64}
    return UNet1DModel(sample_size=64, **channels, **time, **blocks), (randn(1, 2, 64), torch.tensor([3]))


@corpus_model
def tcn_causal() -> Example:
    """Temporal convolutional network: a causal ``nn.Conv1d`` subclass with a buffer argument, weight norm."""
    from pytorch_tcn import TCN

    options: dict[str, Any] = {"causal": True, "use_norm": "weight_norm", "use_skip_connections": True}
    return TCN(num_inputs=4, num_channels=[8, 8, 8], kernel_size=3, dilations=None, **options), (randn(2, 4, 40),)


if __name__ == "__main__":
    for name in MODELS:
        model, inputs = build(name)
        with torch.no_grad():
            model(*inputs)
