"""What can't be used gets one clear error or a reason; the model is as it was, whatever was asked."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized as quantized
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import plain

import ccrewrite
from ccrewrite import CcrewriteError
from ccrewrite.errors import InputError, ModelRunError, SelectionError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.", "ignore:.*quantiz:DeprecationWarning", "ignore:.*quantiz:UserWarning"
)
X = torch.zeros(1, 4, 17, 17)
FUNCTIONS = (ccrewrite.plan, ccrewrite.rewrite, ccrewrite.rewrite_)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.conv(image)
        return out if mask is None else out * mask


def refused(model: Any, inputs: Any, error: type[CcrewriteError], message: str, **options: Any) -> None:
    before = [(n, type(m), m.training) for n, m in model.named_modules()] if isinstance(model, nn.Module) else None
    for function in FUNCTIONS:
        with pytest.raises(error, match=message):
            function(model, inputs, **options)
        if before is not None:
            assert [(n, type(m), m.training) for n, m in model.named_modules()] == before


def test_no_inputs() -> None:
    refused(plain(), None, InputError, "example inputs are needed .* found None. Pass what the model is called with: a tensor")


def test_wrong_shapes() -> None:
    refused(
        plain(), torch.zeros(1, 3, 17, 17), ModelRunError, r"Sequential raised RuntimeError .*\(\(1, 3, 17, 17\)\).*channels"
    )
    refused(plain(), torch.zeros(17), ModelRunError, "runs by itself")


def test_wrong_number_or_names_of_arguments() -> None:
    refused(Keywords(), (X, X, X), ModelRunError, "raised TypeError")
    refused(Keywords(), {"picture": X}, ModelRunError, "raised TypeError .*picture")
    refused(Keywords(), (), ModelRunError, r"raised TypeError .*\(no tensors\)")


def test_inputs_on_another_device_or_of_another_dtype() -> None:
    refused(plain(), X.double(), ModelRunError, "on the example inputs")
    refused(plain(), "an image", ModelRunError, "on the example inputs")


def test_a_model_that_raises() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("tuning")

    refused(Raises(), X, ModelRunError, "Raises raised ZeroDivisionError on the example inputs .*: tuning")
    with pytest.raises(ModelRunError) as raised:
        ccrewrite.plan(Raises(), X)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("how", ["auto", "observe", "export"])
def test_ways_to_give_inputs(how: Any) -> None:
    pixels = torch.randn(1, 4, 9, 9)
    for inputs in (pixels, (pixels,), [pixels], {"image": pixels}, {"image": pixels, "mask": None}, (pixels, torch.ones(1))):
        result = ccrewrite.rewrite(Keywords(), inputs, how=how)
        assert result.check.ok
        assert result.plan["conv"].decision.rewritten


def test_a_module_that_takes_no_inputs_or_odd_ones() -> None:
    class Generates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 4, 4, stride=2)

        def forward(self, steps: int = 2, **options: Any) -> Tensor:
            x = torch.ones(1, 4, 3)
            for _ in range(steps):
                x = self.up(x)
            return x

    assert ccrewrite.rewrite(Generates(), ()).plan["up"].calls == 2
    assert ccrewrite.rewrite(Generates(), 3).plan["up"].calls == 3
    assert ccrewrite.rewrite(Generates(), {"steps": 1, "unused": "x"}).plan["up"].calls == 1


@pytest.mark.parametrize(
    ("model", "found"),
    [(None, "NoneType"), ("resnet50", "str"), (lambda x: x, "function"), ([nn.Conv2d(1, 1, 1)], "list")],
)
def test_what_is_no_model(model: Any, found: str) -> None:
    for function in (ccrewrite.plan, ccrewrite.rewrite):
        with pytest.raises(InputError, match=rf"the model must be an nn\.Module, .* found {found}"):
            function(model, X)
    with pytest.raises(InputError, match=rf"what rewrite_ changes in place must be an nn\.Module, .* found {found}"):
        ccrewrite.rewrite_(model, X)
    with pytest.raises(InputError, match="found " + found):
        ccrewrite.revert(model)


def test_a_model_class_instead_of_a_model() -> None:
    with pytest.raises(InputError, match=r"found the class Keywords: call it first, Keywords\(\.\.\.\)"):
        ccrewrite.plan(Keywords, X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="found the class Keywords: call it first"):
        ccrewrite.rewrite_(Keywords, X)  # type: ignore[arg-type]


def test_in_place_wants_a_module() -> None:
    exported = torch.export.export(plain().eval(), (X,))
    with pytest.raises(InputError, match=r"found an ExportedProgram; rewrite takes it"):
        ccrewrite.rewrite_(exported, X)  # type: ignore[arg-type]


def test_unknown_ways_to_capture() -> None:
    refused(plain(), X, InputError, "how must be one of 'auto', 'export', 'observe', found 'trace'", how="trace")


def test_lazy_modules_before_their_first_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2))
    refused(model, X, InputError, "0 is a LazyConv2d without weights yet: run the model once first")
    model(X)
    assert len(ccrewrite.rewrite(model, X).plan.rewritten) == 2
    refused(nn.LazyConv2d(4, 3, stride=2), X, InputError, "the model is a LazyConv2d without weights yet")


def test_export_that_must_work_and_does_not() -> None:
    class Branches(Keywords):
        def forward(self, image: Tensor) -> Tensor:
            return self.conv(image) if image.sum() > 0 else self.conv(-image)

    refused(Branches(), X, InputError, r"torch\.export refused Branches \(GuardOnDataDependent.*how='auto'", how="export")


def test_scripted_models() -> None:
    for model in (torch.jit.script(plain().eval()), torch.jit.trace(plain().eval(), X)):
        assert {s.decision.code for s in ccrewrite.plan(model, X)} == {"scripted"}  # pyright: ignore[reportArgumentType]
        for function in FUNCTIONS[1:]:
            with pytest.raises(SelectionError, match=r"nothing to rewrite: .* scripted"):
                function(model, X)  # pyright: ignore[reportArgumentType]


def test_quantized_models() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = quantized.Conv2d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)).dequantize()

    assert ccrewrite.plan(Quantized(), X)["conv"].decision.code == "quantized"
    refused_by_rewrite = pytest.raises(SelectionError, match="1 quantized")
    with refused_by_rewrite:
        ccrewrite.rewrite_(Quantized(), X)


def test_complex_models() -> None:
    model = nn.Conv1d(1, 1, 3, dilation=2, dtype=torch.complex64)
    assert ccrewrite.plan(model, torch.zeros(1, 1, 9, dtype=torch.complex64))["(root)"].decision.code == "complex-dtype"
    with pytest.raises(SelectionError, match="1 complex-dtype"):
        ccrewrite.rewrite(model, torch.zeros(1, 1, 9, dtype=torch.complex64))


def test_a_compiled_model() -> None:
    """``torch.compile`` wraps the module; what it wraps is rewritten."""
    torch._dynamo.reset()
    model = torch.compile(plain().eval(), backend="eager")
    for how in ("auto", "observe"):
        result = ccrewrite.rewrite(model, X, how=how)  # type: ignore[arg-type]
        assert result.check.ok
        assert len(result.plan.rewritten) == 3


def test_a_model_that_cannot_be_copied_can_be_rewritten_in_place() -> None:
    model: Any = plain()
    model.lock = re.compile  # fine
    model.generator = (i for i in range(3))  # can't be deep-copied
    with pytest.raises(
        InputError, match=r"Sequential can't be copied \(TypeError: .*\)\. rewrite_\(model, \.\.\.\) works in place"
    ):
        ccrewrite.rewrite(model, X)
    assert ccrewrite.rewrite_(model, X).check.ok


def test_weights_without_gradients_from_inference_mode() -> None:
    with torch.inference_mode():
        model = plain().eval()
        result = ccrewrite.rewrite(model, X)
        assert result.check.ok
        assert torch.equal(result.model(X), model(X))


def test_an_empty_batch() -> None:
    result = ccrewrite.rewrite(plain(), X[:0])
    assert result.check.ok
    assert len(result.plan.rewritten) == 3


def test_errors_are_of_one_family() -> None:
    for error, builtin in ((InputError, ValueError), (ModelRunError, RuntimeError), (SelectionError, LookupError)):
        assert issubclass(error, CcrewriteError)
        assert issubclass(error, builtin)


def test_a_functional_call_with_bad_padding_is_the_models_own_error() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.ones(4, 4, 3, 3), stride=2, padding="same")

    refused(Bad(), X, ModelRunError, "raised RuntimeError.*strided")
