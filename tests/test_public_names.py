"""The public names, pinned; and what importing them costs."""

import importlib
import subprocess
import sys

import pytest

import ccrewrite

HEAVIER = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "onnx", "onnx_ir", "matplotlib")
HEAVY = ("torch", "tabulate", *HEAVIER)


def test_public_names() -> None:
    assert ccrewrite.__all__ == [
        "CcrewriteError",
        "DilatedToDcls",
        "Family",
        "FinetuneConfig",
        "LargeToDcls",
        "Rule",
        "Sampling",
        "StridedToCC",
        "TransposedToCC",
        "aot",
        "compare",
        "export_onnx",
        "finetune",
        "fold",
        "forecast",
        "load",
        "lower",
        "plan",
        "register_family",
        "resize_",
        "resized",
        "revert",
        "rewrite",
        "rewrite_",
        "rewrite_onnx",
        "save",
        "scale_groups",
        "verify",
    ]
    assert set(ccrewrite.__all__) <= set(dir(ccrewrite))


@pytest.mark.parametrize("name", ccrewrite.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert getattr(ccrewrite, name).__doc__


@pytest.mark.parametrize("name", ccrewrite._MOVED)
def test_a_name_that_moved_says_where_to(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"ccrewrite\.{name} is now {name} of ccrewrite\.") as caught:
        getattr(ccrewrite, name)
    assert hasattr(importlib.import_module(str(caught.value).rpartition(" ")[2]), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rewrit'"):
        _ = ccrewrite.rewrit


def test_every_name_can_be_had_without_the_extras() -> None:
    extras = ("accelerate", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "onnxscript")
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); from ccrewrite import *"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["ccrewrite.families", "ccrewrite.nn", "ccrewrite.report", "ccrewrite.training"])
def test_names_of_a_package_are_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'name'"):
        _ = module.name


def test_training_and_reports_import_nothing_heavy() -> None:
    heavy = [name for name in HEAVY if name not in ("torch", "tabulate")]
    code = "import sys; from ccrewrite.training import *; from ccrewrite.report import *; from ccrewrite import finetune; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def imported(statement: str, names: tuple[str, ...]) -> str:
    code = f"import sys; {statement}; print([name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import ccrewrite", HEAVY) == "[]"


def test_only_what_compiles_imports_a_compiler_and_only_what_reads_onnx_files_imports_onnx() -> None:
    light = [name for name in ccrewrite.__all__ if name not in ("aot", "forecast", "lower")]
    assert imported(f"from ccrewrite import {', '.join(light)}", HEAVIER) == "[]"


def test_rewriting_needs_no_sympy_to_be_imported() -> None:
    assert imported("from ccrewrite import plan, rewrite, rewrite_, revert, verify", (*HEAVIER, "sympy")) == "[]"
