"""Hugging Face's Trainer with a rewritten model: parameter groups, distillation, a freeze schedule and a recorder.

pip install transformers accelerate; python examples/finetune_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from digits import accuracy, digits, trained
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import ccrewrite
from ccrewrite.training import Distillation, FreezeSchedule, Recorder, param_groups


class Classifier(nn.Module):
    """Called as Trainer calls models: by name, with the labels among the inputs. A model of transformers' is one already."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.network(pixels)
        return {"logits": scores} if labels is None else {"loss": F.cross_entropy(scores, labels), "logits": scores}


class Distilling(Trainer):
    """Trainer's own losses and optimizer, with ours in them."""

    def __init__(self, *arguments: Any, distillation: Distillation, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.distillation = distillation

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(param_groups(self.model, self.args.learning_rate, self.args.weight_decay))
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **named)
        loss = loss + 0.5 * self.distillation().outputs
        return (loss, outputs) if return_outputs else loss


class Step(TrainerCallback):
    """Steps schedules where Trainer has stepped the optimizer and still has the gradients.

    The freeze schedule starts here, for Trainer makes its optimizer when training begins.
    """

    def __init__(self, *schedules: Any) -> None:
        self.schedules = list(schedules)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **named: Any) -> None:
        freeze = FreezeSchedule(model, weights=state.max_steps // 4)
        freeze.load_state_dict({"done": state.global_step})  # not 0 where Trainer resumes
        self.schedules.append(freeze)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        for schedule in self.schedules:
            schedule.step()


def main() -> None:
    original = Classifier(trained())
    train, _ = digits()
    images, labels = train.tensors
    model: Any = ccrewrite.rewrite(original, {"pixels": images[:1]}).model
    rows = [{"pixels": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    recorder = Recorder(model, every=7)
    with tempfile.TemporaryDirectory() as directory, Distillation(model, original) as distillation:
        arguments = TrainingArguments(
            directory,
            per_device_train_batch_size=50,
            num_train_epochs=2,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            logging_steps=28,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Distilling(model, arguments, train_dataset=rows, callbacks=[Step(recorder)], distillation=distillation)
        trainer.train()
    model.cpu()
    print(f"test accuracy {accuracy(original.network):.3f} before, {accuracy(model.network):.3f} after")
    print(recorder)


if __name__ == "__main__":
    main()
