"""Fine-tunes the small network, under whatever launched it: ``python many.py OUT KEY=VALUE...``, with the config's options, and

steps=N     batches in an epoch
halt=N      hang in step N, for somebody to kill it
resume=true
fsdp="..."  FSDP2, the rewritten layers each by themselves, with checkpoints of this type
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training_models import network, rewritten

from ccrewrite import FinetuneConfig, finetune


def main(out: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    options: dict[str, Any] = {"epochs": 1, "features": ["3"]} | {
        k: json.loads(v) for k, _, v in (a.partition("=") for a in arguments)
    }
    steps, halt, resume = (options.pop(k, d) for k, d in (("steps", 20), ("halt", 0), ("resume", False)))
    states = options.pop("fsdp", None)
    original = network().double()
    model = rewritten(original)
    m: Any
    for m in (model, original):
        m[5].p = 0.0  # each process would drop others
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8 * steps, 1, 12, 12, generator=generator, dtype=torch.float64)
    data = TensorDataset(images, (images[:, :, :6].mean((1, 2, 3)) > 0).long())
    accelerator = None
    if states:
        from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState

        each = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["CCConv2d", "DclsConv2d", "CCConvTranspose2d"],
            state_dict_type=states,
            cpu_ram_efficient_loading=False,
        )
        accelerator = Accelerator(cpu=True)
        # accelerate takes the plugin on GPUs alone; what it then does runs on CPUs as well.
        accelerator.state.fsdp_plugin = each
        for state in (accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP

    step = 0

    def loss(outputs: Tensor, classes: Tensor) -> Tensor:
        nonlocal step
        step += outputs.requires_grad  # not in validation
        if step == halt:
            time.sleep(1000)
        return F.cross_entropy(outputs, classes)

    loader = DataLoader(data, batch_size=8, shuffle=True)
    finetune(
        model,
        loader,
        loss,
        original=original,
        validation=DataLoader(data, batch_size=5),
        config=FinetuneConfig.from_mapping(options),
        out=out,
        resume=resume,
        accelerator=accelerator,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
