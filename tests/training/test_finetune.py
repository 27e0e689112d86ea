"""The loop in one process: what it computes, how it goes on after a stop, and what it says of bad input."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset
from training_models import network, pictures, rewritten

import ccrewrite
from ccrewrite import FinetuneConfig, finetune
from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.nn import DclsConv2d, Sampling
from ccrewrite.training import FreezeSchedule, WidthSchedule, clamp_positions, nyquist_penalty, param_groups, repulsive_loss

CONFIG = FinetuneConfig(epochs=2, lr=1e-2)


class Noisy(Dataset[Any]):
    """Augments by all three global generators."""

    def __init__(self, count: int = 20) -> None:
        self.images, self.classes = pictures(count), torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn(1, 12, 12) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.images[index] + noise, self.classes[index]


def loader(count: int = 20, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(count), **{"batch_size": 6, "shuffle": True} | options)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_is_the_loop_that_one_would_write() -> None:
    """By hand, with fixed batches, no dropout: the same weights to the last bit."""
    batches = list(zip(pictures(12).split(4), (torch.arange(12) % 3).split(4), strict=True))
    config = FinetuneConfig(epochs=2, lr=1e-2, weight_decay=0.1, repulsion=0.5, smoothness=0.1, clip_norm=0.5, warmup=0.5)
    mine: Any
    theirs: Any
    mine, theirs = (rewritten(network()) for _ in range(2))
    mine[5].p = theirs[5].p = 0.0
    history = finetune(theirs, batches, F.cross_entropy, config=config)
    optimizer = torch.optim.AdamW(param_groups(mine, 1e-2, 0.1))
    rates = [g["lr"] for g in optimizer.param_groups]
    losses = []
    for step in range(6):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (min(step + 1, 3) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 3)))
        images, classes = batches[step % 3]
        loss = F.cross_entropy(mine(images), classes) + 0.5 * repulsive_loss(mine).square() + 0.1 * nyquist_penalty(mine)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mine.parameters(), 0.5)
        optimizer.step()
        clamp_positions(mine)
    assert history.losses == pytest.approx(losses, rel=1e-6)
    assert all(torch.allclose(t, theirs.state_dict()[n], atol=1e-7) for n, t in state(mine).items())
    assert history.validations == []
    assert history.best_epoch is None


def test_it_learns_and_geometry_moves() -> None:
    images = pictures(24)
    classes = (images.mean((1, 2, 3)) > 0).long()
    model = rewritten(network())
    history = finetune(model, [(images, classes)], F.cross_entropy, config=FinetuneConfig(epochs=30, lr=2e-2))
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert all(any(bool(p.any()) for p in m.movers()) for m in model.modules() if isinstance(m, Sampling))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distillation": 1.0, "feature_distillation": 1.0},
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"weights_from": 3}, marks=pytest.mark.slow),
        pytest.param({"mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_that_stopped_goes_on_bitwise(options: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch, with dropout, shuffling and random augmentation."""
    config = FinetuneConfig(epochs=3, lr=1e-2, checkpoint_every=3, features=("3",), repulsion=0.1, **options)
    original = network()
    calls = 0

    def breaking(outputs: Tensor, classes: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, classes)

    # With a worker, fetching doesn't seed the process that trains.
    workers = 0 if options else 1
    common: dict[str, Any] = {"config": config, "original": original, "validation": loader(9)}
    stop = -1
    whole = rewritten(original)
    expected = finetune(whole, loader(num_workers=workers), breaking, out=tmp_path / "whole", **common)
    calls, stop = 0, 14
    with pytest.raises(KeyboardInterrupt):
        finetune(rewritten(original), loader(num_workers=workers), breaking, out=tmp_path / "parts", **common)
    interrupted = (tmp_path / "parts" / "log.csv").read_text()
    stop = -1
    torch.manual_seed(5)
    again = rewritten(original)
    found = finetune(again, loader(num_workers=workers), breaking, out=tmp_path / "parts", resume=True, **common)
    assert len(interrupted.splitlines()) > 3
    assert found == expected
    assert same(state(again), state(whole))
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    rows = list(csv.DictReader(logs[0].splitlines()))
    assert [float(r["loss"]) for r in rows] == expected.losses
    assert len(rows) == 3 * math.ceil(4 / config.accumulate)
    # Finished: nothing to do, the same history and weights.
    third = rewritten(original)
    assert finetune(third, loader(num_workers=workers), breaking, out=tmp_path / "parts", resume=True, **common) == expected
    assert same(state(third), state(whole))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_data_don_t_depend_on_workers_or_processes() -> None:
    from ccrewrite.training.batches import Batches

    def drawn(workers: int, rank: int = 0, world: int = 1, start: int = 0) -> list[Tensor]:
        batches = Batches(loader(num_workers=workers), "data", 3, rank, world)
        return [share.batch[0] for share in batches.epoch(1, start)]  # pyright: ignore[reportIndexIssue]

    alone = drawn(0)
    assert [len(b) for b in alone] == [6, 6, 6, 2]
    assert all(torch.equal(a, b) for a, b in zip(alone, drawn(2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], drawn(0, start=2), strict=True))
    parts = [drawn(0, rank, 2) for rank in range(2)]
    for whole, first, second in zip(alone, *parts, strict=True):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)


def test_shares_of_a_small_batch_count_for_what_they_are() -> None:
    from ccrewrite.training.batches import Batches

    shares = [list(Batches(loader(7, batch_size=4), "data", 0, rank, 4).epoch(0)) for rank in range(4)]
    assert [[s.weight for s in of_rank] for of_rank in shares] == [[1, 4 / 3], [1, 4 / 3], [1, 4 / 3], [1, 0]]
    assert all(len(s.batch[0]) == 1 for of_rank in shares for s in of_rank)  # pyright: ignore[reportIndexIssue]


def test_the_users_generators_and_flags_are_left_alone() -> None:
    model = rewritten(network()).eval()
    generator = torch.Generator().manual_seed(9)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002  # pyright: ignore[reportArgumentType]
    runs = [finetune(rewritten(network()), loader(generator=generator), F.cross_entropy, config=CONFIG) for _ in range(2)]
    finetune(model, loader(), F.cross_entropy, config=replace(CONFIG, mixed_precision="bf16", geometry_from=math.inf))
    assert runs[0] == runs[1]
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert "forward" not in vars(model)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002  # pyright: ignore[reportArgumentType]


def test_geometry_first_then_weights() -> None:
    model = rewritten(network())
    before = state(model)
    finetune(model, loader(), F.cross_entropy, config=replace(CONFIG, weights_from=math.inf))
    moved = {n for n, t in state(model).items() if not torch.equal(t, before[n])}
    assert moved
    assert all(".sampling." in n for n in moved)


def test_early_stopping_ends_with_the_best_weights(tmp_path: Path) -> None:
    """A rate at which it gets worse: the weights of the best epoch, on disk and in the model."""
    model = rewritten(network())
    config = FinetuneConfig(epochs=9, lr=0.3, patience=2, schedule="constant")
    data = [(pictures(12), torch.arange(12) % 3)]
    history = finetune(model, data, F.cross_entropy, validation=data, config=config, out=tmp_path)
    assert history.stopped_early
    assert history.best_epoch == len(history.validations) - 3
    assert min(history.validations) == history.validations[history.best_epoch]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with torch.no_grad():
        assert F.cross_entropy(model.eval()(data[0][0]), data[0][1]).item() == pytest.approx(min(history.validations), rel=1e-5)
    other = rewritten(network())
    again = finetune(other, data, F.cross_entropy, validation=data, config=config, out=tmp_path, resume=True)
    assert again == history
    assert same(state(other), state(model))


def test_schedules_are_stepped_and_stored(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, WidthSchedule]:
        torch.manual_seed(0)
        layer = DclsConv2d(1, 3, elements=4, window=7, interpolation="gaussian")
        model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return model, WidthSchedule(model, start=2.0, end=0.5, steps=8)

    model, schedule = build()
    finetune(model, loader(), F.cross_entropy, config=CONFIG, schedules=[schedule], out=tmp_path)
    assert schedule.width == 0.5
    other, fresh = build()
    finetune(other, loader(), F.cross_entropy, config=CONFIG, schedules=[fresh], out=tmp_path, resume=True)
    assert fresh.done == 8
    assert same(state(model), state(other))


def test_shared_positions_are_trained_and_stored_once(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        a, b = (DclsConv2d(1, 1, elements=3, window=5, padding="same") for _ in range(2))
        share_positions(a, b)
        return nn.Sequential(a, b, nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    other: Any
    model, other = build(), build()
    finetune(model, loader(), F.cross_entropy, config=CONFIG, out=tmp_path)
    finetune(other, loader(), F.cross_entropy, config=CONFIG, out=tmp_path, resume=True)
    assert other[0].sampling.offset is other[1].sampling.offset
    assert same(state(model), state(other))


class Mapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.network(pixels)
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}


def test_mappings_are_passed_by_name() -> None:
    rows = [{"pixels": image, "labels": index % 3} for index, image in enumerate(pictures(9))]
    model = Mapped(rewritten(network()))
    history = finetune(model, DataLoader(rows, batch_size=3), lambda outputs, batch: outputs["loss"], config=CONFIG)  # pyright: ignore[reportArgumentType]
    assert len(history.losses) == 6


def test_a_plain_model_trains_on_request() -> None:
    with pytest.raises(InputError, match="no trainable geometry"):
        finetune(network(), loader(), F.cross_entropy)
    assert finetune(network(), loader(), F.cross_entropy, config=CONFIG, require_geometry=False).losses
    frozen = rewritten(network())
    for sampling in (m for m in frozen.modules() if isinstance(m, Sampling)):
        sampling.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable geometry"):
        finetune(frozen, loader(), F.cross_entropy)


def mean(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.mean()


@pytest.mark.parametrize(
    ("data", "loss", "options", "says"),
    [
        ([], mean, {}, "train_data is empty"),
        (iter([1]), mean, {}, "collection of batches, found list_iterator"),
        (3, mean, {}, "collection of batches, found int"),
        ([torch.zeros(2, 1, 12, 12)], mean, {}, r"must be \(\*inputs, target\) or a mapping, found Tensor"),
        (None, lambda o, t: o, {}, r"scalar tensor, the mean over the batch; found shape \(6, 3\)"),
        (None, lambda o, t: 1.0, {}, "scalar tensor, the mean over the batch; found float"),
        (None, lambda o, t: o.detach().mean(), {}, "depends on nothing that trains"),
        (None, lambda o, t: o.mean() * math.nan, {}, "the loss at step 1 .* is nan; try a lower lr"),
        (None, lambda o, t: o.mean() if o.requires_grad else o.mean() * math.inf, {"validation": [(1, 2)]}, "validation loss"),
        (None, mean, {"config": replace(CONFIG, distillation=1.0)}, "distillation needs the original"),
        (None, mean, {"config": replace(CONFIG, patience=1)}, "patience needs validation"),
        (None, mean, {"config": replace(CONFIG, mixed_precision="fp16")}, "needs a GPU, found cpu"),
        (None, mean, {"config": replace(CONFIG, trackers=("tensorboard",))}, "tensorboard|trackers need out"),
        (
            None,
            mean,
            {"config": replace(CONFIG, features=("nowhere",), distillation=1.0), "original": 1},
            "no module 'nowhere'",
        ),
        (None, mean, {"config": replace(CONFIG, geometry_from=math.inf, weights_from=math.inf)}, "not both never"),
    ],
)
def test_mistakes_are_named(data: Any, loss: Any, options: dict[str, Any], says: str) -> None:
    options = dict(options)
    if "validation" in options:
        options["validation"] = loader()
    if "original" in options:
        options["original"] = network()
    model = rewritten(network())
    hooks = dict(model._forward_hooks)
    with pytest.raises(InputError, match=says):
        finetune(model, loader() if data is None else data, loss, **{"config": CONFIG, **options})
    assert model._forward_hooks == hooks
    assert all(p.requires_grad for p in model.parameters())
    finetune(rewritten(network()), loader(6), F.cross_entropy, config=FinetuneConfig(epochs=1))  # nothing is left behind


def test_a_distributed_sampler_and_unshareable_data_are_refused() -> None:
    from ccrewrite.training.batches import Batches

    dataset = TensorDataset(pictures())
    with pytest.raises(InputError, match="DistributedSampler"):
        Batches(DataLoader(dataset, sampler=DistributedSampler(dataset, 2, 0)), "data", 0, 0, 2)
    with pytest.raises(InputError, match="for 2 processes to share it"):
        Batches([1, 2], "data", 0, 0, 2)

    class Short(list[Any]):
        def __len__(self) -> int:
            return 5

    with pytest.raises(InputError, match="a length of 5 batches, but gave 2 in epoch 0"):
        list(Batches(Short([1, 2]), "data", 0).epoch(0))


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    def run(epochs: int, out: str, resume: bool = False) -> Any:
        model = rewritten(network())
        config = replace(CONFIG, epochs=epochs, schedule="constant", warmup=0.0)
        history = finetune(model, loader(), F.cross_entropy, config=config, out=tmp_path / out, resume=resume)
        return history, state(model)

    expected, weights = run(3, "whole")
    run(2, "parts")
    found, again = run(3, "parts", resume=True)
    assert found == expected
    assert same(again, weights)
    assert str(found) == f"12 steps, loss {found.losses[0]:.4g} to {found.losses[-1]:.4g}"
    with pytest.raises(InputError, match=r"config\.epochs was 3, now it is 2"):
        run(2, "parts", resume=True)
    run(3, "parts", resume=True)


def test_a_folder_that_doesn_t_fit(tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        model = options.pop("model", None) or rewritten(network())
        given = {"config": CONFIG, "out": tmp_path / "run"} | options
        return finetune(model, given.pop("data", loader()), F.cross_entropy, **given)

    run()
    with pytest.raises(InputError, match="holds a run already"):
        run()
    for options, says in (
        ({"config": replace(CONFIG, lr=0.5)}, r"config.lr was 0.01, now it is 0.5"),
        ({"data": loader(30)}, "batches in an epoch was 4, now it is 5"),
        ({"model": rewritten(network(classes=4))}, r"model.8.weight was \(3, 16\), now it is \(4, 16\)"),
        ({"schedules": [FreezeSchedule(rewritten(network()))]}, "schedules was"),
    ):
        with pytest.raises(InputError, match=says):
            run(resume=True, **options)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    for name in ("optimizer.bin", "model.safetensors", "progress.pt"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=f"{checkpoint.name}.* can't be"):
            run(resume=True)
        (checkpoint / name).write_bytes(whole)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        run(out=tmp_path / "file")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json is damaged"):
        run(resume=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1"),
        ({"epochs": 1.5}, "epochs must be an integer"),
        ({"lr": -1}, "lr must be a finite number"),
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"lr": "1e-3"}, "lr must be a finite number"),
        ({"warmup": 2}, "at most 1"),
        ({"schedule": "linear"}, "schedule must be one of 'cosine', 'constant'; found 'linear'"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of"),
        ({"features": "layer1"}, "features must be a list of names"),
        ({"feature_distillation": 1.0}, "needs features"),
        ({"seed": -1}, "seed must be"),
        ({"compile": "all"}, 'compile must be true, false, "sites" or "auto"; found .all.'),
        ({"temprature": 1}, "no option 'temprature'"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FinetuneConfig.from_mapping(options)


def test_lists_of_a_file_become_tuples() -> None:
    assert FinetuneConfig.from_mapping({"features": ["a"]}).features == ("a",)
    assert ccrewrite.FinetuneConfig is FinetuneConfig
