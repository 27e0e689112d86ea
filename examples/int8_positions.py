"""Positions trained for int8: fake quantization (PT2E) around the kernels that they make, then fold and quantize. A minute.

Needs torchao and executorch beside ccrewrite[demo].
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from digits import accuracy, digits, trained
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch import nn
from torch.utils.data import DataLoader
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

import ccrewrite


def quantizer(*, training: bool) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=training))


def exported(model: nn.Module, example: torch.Tensor) -> Any:
    return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False).module()


def main() -> None:
    warnings.simplefilter("ignore")  # the quantizers' about themselves
    train, _ = digits()
    example = train.tensors[0][:2]
    model = ccrewrite.rewrite(trained(), example).model
    print(f"in float, before: {accuracy(model):.3f}")

    # What is quantized here is the kernel that weight and positions make: both are trained through its rounding.
    torch.manual_seed(0)
    program = prepare_qat_pt2e(exported(model.train(), example), quantizer(training=True))
    move_exported_model_to_train(program)
    parameters = dict(program.named_parameters())
    positions = [p for name, p in parameters.items() if name.endswith((".offset", ".shift"))]
    others = [p for name, p in parameters.items() if not name.endswith((".offset", ".shift"))]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 1e-3}, {"params": positions, "lr": 1e-2, "weight_decay": 0.0}])
    for _ in range(2):
        for images, labels in DataLoader(train, batch_size=50, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(program(images), labels).backward()
            optimizer.step()

    # The program's parameters have the model's names: what was learned goes back, and is folded and quantized.
    learned, own = program.state_dict(), model.state_dict()
    model.load_state_dict({name: learned.get(name, value) for name, value in own.items()})
    moved = max(float(p.detach().abs().max()) for p in positions)
    print(f"in float, trained: {accuracy(model):.3f}; positions moved by up to {moved:.2f} samples")
    folded = ccrewrite.fold(model, example, batch_norm=True, target="executorch-xnnpack").model.eval()
    prepared = prepare_pt2e(exported(copy.deepcopy(folded), example), quantizer(training=False))
    prepared(train.tensors[0][:100])
    small = convert_pt2e(prepared)
    move_exported_model_to_eval(small)
    images, labels = digits()[1].tensors
    right = float((small(images).argmax(1) == labels).float().mean())
    print(f"in int8: {right:.3f}")
    assert right > accuracy(folded) - 0.01


if __name__ == "__main__":
    main()
