"""The demo: its data, its network, the shipped weights, and what ``ccrewrite demo`` shows."""

import functools
import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import ccrewrite.demo.canvases as data
import ccrewrite.demo.run as demo
from ccrewrite.api import Result, plan, revert, rewrite
from ccrewrite.demo.canvases import BACKGROUND, TRAIN_DIGITS, canvases
from ccrewrite.demo.network import WEIGHTS, example_inputs, segmenter
from ccrewrite.demo.train import TEST_CANVASES, TEST_SEED, evaluate, train
from ccrewrite.errors import CcrewriteError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def evaluation() -> tuple[torch.Tensor, torch.Tensor]:
    return canvases(TEST_CANVASES, TEST_SEED, "test")


@pytest.fixture
def rewritten() -> Result:
    torch.manual_seed(0)
    return rewrite(segmenter(), example_inputs())


def test_canvases_depend_on_the_arguments_alone():
    images, labels = canvases(4, 7, "train")
    again = canvases(4, 7, "train")
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    for other in (canvases(4, 8, "train"), canvases(4, 7, "test")):
        assert not torch.equal(images, other[0])
        assert not torch.equal(labels, other[1])


def test_canvases_hold_every_class_and_mostly_background():
    images, labels = canvases(50, 0, "train")
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    counts = labels.flatten().bincount()
    assert len(counts) == 11
    assert counts.min() > 0
    assert 0.5 < counts[BACKGROUND] / counts.sum() < 0.95
    assert images.squeeze(1)[labels != BACKGROUND].mean() > 2 * images.squeeze(1)[labels == BACKGROUND].mean()


def test_no_drawing_is_in_both_splits(monkeypatch: pytest.MonkeyPatch):
    classes = (np.arange(1797) >= TRAIN_DIGITS).astype(np.int64)
    monkeypatch.setattr(data, "_digits", lambda: (np.ones((1797, 8, 8)), classes))
    assert canvases(20, 0, "train")[1].unique().tolist() == [0, BACKGROUND]
    assert canvases(20, 0, "test")[1].unique().tolist() == [1, BACKGROUND]


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(data, "_digits", functools.cache(data._digits.__wrapped__))
    with pytest.raises(CcrewriteError, match=r"scikit-learn can't be imported.*pip install 'ccrewrite\[demo\]'"):
        canvases(1, 0, "train")


def test_network_keeps_the_image_size_and_is_small():
    model = segmenter(pretrained=False)
    assert model(torch.zeros(2, 1, 48, 80)).shape == (2, 11, 48, 80)
    assert sum(p.numel() for p in model.parameters()) < 150_000
    assert WEIGHTS.stat().st_size < 700_000


def test_network_has_every_kind_of_site():
    found = plan(segmenter(), example_inputs())
    assert [site.name for site in found if not site.decision.rewritten] == ["stem.0", "context3.1.0", "head"]
    kinds = [site.kinds for site in found if site.decision.rewritten]
    assert kinds == [("strided",)] * 2 + [("dilated",)] * 3 + [("transposed", "strided")] * 2


def test_shipped_weights_reach_what_the_documentation_says(evaluation: tuple[torch.Tensor, torch.Tensor]):
    score = evaluate(segmenter(), *evaluation)
    assert score.mIoU > 0.81
    assert score.pixel_accuracy > 0.98


def test_scores_are_those_of_the_predictions():
    labels = torch.tensor([[[0, 0, 3, 10, 10, 10]]])
    predictions = torch.tensor([[[0, 10, 3, 10, 10, 10]]])
    score = evaluate(nn.Identity(), F.one_hot(predictions, 11).movedim(-1, 1).float(), labels)
    assert score.pixel_accuracy == pytest.approx(5 / 6)
    assert score.mIoU == pytest.approx((1 / 2 + 1 + 3 / 4) / 3)
    right, wrong = np.log(np.e + 10) - 1, np.log(np.e + 10)
    assert score.loss == pytest.approx((5 * right + wrong) / 6)


def test_rewriting_keeps_the_scores(rewritten: Result, evaluation: tuple[torch.Tensor, torch.Tensor]):
    assert rewritten.check.ok
    assert len(rewritten.plan.rewritten) == 7
    assert evaluate(rewritten.model, *evaluation) == evaluate(segmenter(), *evaluation)


def test_kernels_built_from_their_geometry_compute_the_same(rewritten: Result):
    images = canvases(4, 0, "test")[0].double()
    expected = segmenter().double()(images)
    torch.testing.assert_close(rewritten.model.double()(images), expected, rtol=1e-12, atol=1e-12)


def test_fine_tuning_moves_the_geometry_alone_and_revert_undoes_it(rewritten: Result):
    model, images = rewritten.model, canvases(4, 0, "test")[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    demo.fine_tune(model, steps=3)
    after = model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == (".sampling." not in name), name
    with torch.no_grad():
        assert not torch.equal(model(images), segmenter()(images))
        assert torch.equal(revert(model)(images), segmenter()(images))


def test_training_learns():
    images, labels = canvases(20, 0, "test")
    untrained = evaluate(segmenter(pretrained=False), images, labels)
    trained = evaluate(train(Console(quiet=True), steps=10), images, labels)
    assert trained.loss < untrained.loss / 1.5


def test_the_run_shows_equal_scores_and_restores_the_thread_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "fine_tune", functools.partial(demo.fine_tune, steps=2))
    monkeypatch.setattr(demo, "TEST_CANVASES", 20)
    torch.set_num_threads(2)
    output = io.StringIO()
    scores = demo.run(Console(file=output, width=160))
    assert torch.get_num_threads() == 2
    text = output.getvalue()
    assert "10 sites: 7 rewritten; left alone: 3 plain" in text
    assert "Outputs before and after: equal" in text
    lines = [line for line in text.splitlines() if line.startswith("│")]
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("│").split("│")] for line in lines)}
    assert rows["these layers"][1:] == ["139,376", "3,976"]
    assert rows["original"] == rows["rewritten"] == rows["reverted"]
    assert rows["fine-tuned"] != rows["original"]
    assert len(rows["original"]) == 3
    assert {name: [f"{value:.4f}" for value in score] for name, score in scores.items()} == {n: rows[n] for n in scores}
    assert scores.keys() == {"original", "rewritten", "fine-tuned", "reverted"}
