"""What each corpus model must show: the convolution calls of one forward, and the reasons that may be given for leaving one."""

from __future__ import annotations

from typing import NamedTuple


class Calls(NamedTuple):
    """Convolution calls of one forward: all, and those dilated, strided (not transposed) and transposed."""

    all: int
    dilated: int
    strided: int
    transposed: int


CALLS = {
    "hf_mobilenetv2_deeplab": Calls(56, 10, 3, 0),
    "hf_dac_weightnorm": Calls(36, 8, 2, 2),
    "hf_encodec": Calls(46, 6, 3, 3),
    "hf_univnet": Calls(18, 2, 0, 2),
    "hf_wav2vec2": Calls(8, 0, 7, 0),
    "hf_bit": Calls(17, 0, 5, 0),
    "hf_dpt_depth": Calls(33, 0, 2, 2),
    "monai_unet3d": Calls(13, 0, 4, 2),
    "monai_highresnet3d": Calls(21, 12, 0, 0),
    "monai_mednext3d": Calls(61, 0, 8, 9),
    "monai_basicunet_odd": Calls(23, 0, 0, 4),
    "pcv_erfnet": Calls(74, 16, 3, 3),
    "pcv_sharesnet18": Calls(20, 0, 7, 0),
    "diffusers_unet1d": Calls(60, 0, 3, 3),
    "tcn_causal": Calls(7, 4, 0, 0),
}
"""Counted from the run itself, outside the package (``observe.py``)."""

REFUSED: dict[str, dict[str, str]] = {}
"""Model -> {name of a dilated, strided or transposed site left alone: its reason code}; all others are rewritten."""

HIDDEN = {"hf_mobilenetv2_deeplab": 1, "hf_encodec": 23}
"""Model -> calls whose weight gets no gradient from the outputs: a head that segmentation leaves unused; the encoder before a
quantiser (its outputs are integer codes). In every other model all calls matter to the outputs."""

NOT_EXPORTABLE = {"hf_encodec"}
"""Models that ``torch.export.export(strict=False)`` refuses, rewritten or not: a pad length read from a buffer."""

NOT_COMPILABLE = {"hf_encodec", "hf_wav2vec2", "monai_basicunet_odd"}
"""Models that ``torch.compile(fullgraph=True)`` refuses, rewritten or not: that pad length, numpy's random numbers, a branch on
TorchScript."""
