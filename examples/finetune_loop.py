"""The pieces of ccrewrite.training in a loop of your own.

    python examples/finetune_loop.py

Geometry trains first and the weights join in; the model stays near the original; weights are averaged over steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits import accuracy, digits, trained
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

import ccrewrite
from ccrewrite.training import Distillation, FreezeSchedule, Recorder, clamp_positions, param_groups, repulsive_loss

EPOCHS, LR = 2, 2e-3


def main() -> None:
    original = trained()
    train, _ = digits()
    model = ccrewrite.rewrite(original, train[:1][0]).model
    torch.manual_seed(0)
    loader = DataLoader(train, batch_size=50, shuffle=True)
    optimizer = torch.optim.AdamW(param_groups(model, LR, weight_decay=0.01))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    freeze = FreezeSchedule(model, weights=len(loader) // 2)  # after the optimizer, which takes what is trainable
    recorder = Recorder(model, every=7)
    with Distillation(model, original, features=["5"]) as distillation:
        model.train()
        for epoch in range(EPOCHS):
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                outputs, features = distillation()
                crowding = repulsive_loss(model)
                optimizer.zero_grad()
                (loss + 0.5 * outputs + 0.1 * features + 0.1 * crowding**2).backward()
                optimizer.step()
                clamp_positions(model)  # needed only where batches come in parts
                average.update_parameters(model)
                for schedule in (rates, freeze, recorder):
                    schedule.step()
            print(f"epoch {epoch}: loss {loss.item():.3f}, from the original {outputs.item():.4f}")
    update_bn((images for images, _ in loader), average)
    print(f"test accuracy {accuracy(original):.3f} before, {accuracy(model):.3f} after, {accuracy(average):.3f} averaged")
    print(recorder)


if __name__ == "__main__":
    main()
