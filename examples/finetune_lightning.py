"""Lightning with a rewritten model: parameter groups, distillation, a freeze schedule that checkpoints keep, and a recorder.

pip install lightning; python examples/finetune_lightning.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from digits import accuracy, digits, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ccrewrite
from ccrewrite.training import Distillation, FreezeSchedule, Recorder, param_groups


class FineTuned(lightning.LightningModule):
    def __init__(self, model: nn.Module, original: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.recorder = Recorder(model, every=7)
        self.originals = [original]  # in a list, so that it is no part of this module: not trained, not stored

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(param_groups(self.model, 2e-3, 0.01))
        steps = int(self.trainer.estimated_stepping_batches)
        self.freeze = FreezeSchedule(self.model, weights=steps // 4)  # after the optimizer
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_train_start(self) -> None:
        self.distillation = Distillation(self.model, self.originals[0].to(self.device))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        return loss + 0.5 * self.distillation().outputs

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """The optimizer has stepped, and gradients are cleared with the next batch."""
        self.freeze.step()
        self.recorder.step()

    def on_train_end(self) -> None:
        self.distillation.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedules"] = self.freeze.state_dict(), self.recorder.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stored = checkpoint["schedules"]

    def on_fit_start(self) -> None:
        if hasattr(self, "stored"):
            self.freeze.load_state_dict(self.stored[0])
            self.recorder.load_state_dict(self.stored[1])


def main() -> None:
    original = trained()
    train, _ = digits()
    model = ccrewrite.rewrite(original, train[:1][0]).model
    module = FineTuned(model.train(), original)  # Lightning leaves training flags as they are
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, DataLoader(train, batch_size=50, shuffle=True))
    model.cpu()
    print(f"test accuracy {accuracy(original.cpu()):.3f} before, {accuracy(model):.3f} after")
    print(module.recorder)


if __name__ == "__main__":
    main()
