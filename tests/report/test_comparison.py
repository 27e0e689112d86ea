"""What a comparison says, and how it is saved."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from compared_net import Compared
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.timing import time_cases
from ccrewrite.report import Comparison, compare, regression
from ccrewrite.report.compiling import room_for
from ccrewrite.report.contents import batches, scale_groups, sites, trade
from ccrewrite.report.document import document, overview
from ccrewrite.report.tables import FORMATS
from ccrewrite.report.variants import batch_of

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report-schema.json").read_text())


def check(comparison: Comparison) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(comparison.to_json()), SCHEMA)


def test_the_data_is_as_published(compared: Compared) -> None:
    check(compared.comparison)
    broken = json.loads(compared.comparison.to_json())
    broken["variants"][1]["flops"]["inference"] = "much"
    with pytest.raises(jsonschema.ValidationError, match="much"):
        jsonschema.validate(broken, SCHEMA)


def test_untouched_and_moved(compared: Compared) -> None:
    c = compared.comparison
    assert c.summary() == "5 of 6 convolution sites rewritten"
    assert c.rewritten_sites == ["down", "dilated", "depthwise", "kernel", "up"]
    assert {o["path"]: o["max_abs_error"] for o in c["rewritten"]["outputs"]} == {"output['map']": 0, "output['classes']": 0}
    assert all(o["max_abs_error"] > o["mean_abs_error"] > 0 for o in c["trained"]["outputs"])
    for site in c.data["sites"]:
        untouched, moved = site["variants"]["rewritten"], site["variants"]["trained"]
        assert untouched["error"]["local"]["max_abs_error"] == untouched["error"]["propagated"]["max_abs_error"] == 0
        if site["name"] == "stem":
            assert "learnt" not in untouched
            assert moved["error"]["propagated"]["max_abs_error"] == 0
            continue
        assert untouched["error"]["local, kernels built"]["max_rel_error"] < 1e-5
        assert moved["error"]["local"]["max_abs_error"] > 0.01
        assert not untouched["learnt"]["moved"]
        assert moved["learnt"]["moved"]
    first, second = (compared.comparison.data["sites"][i]["variants"]["trained"]["error"] for i in (1, 2))
    assert first["local"] == first["propagated"], "nothing upstream of the first rewritten site changed"
    assert second["local"] != second["propagated"]


def test_local_and_propagated_errors_by_hand() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv1d(1, 1, 2, dilation=2, bias=False), nn.Conv1d(1, 1, 1, bias=False))
    with torch.no_grad():
        model[1].weight.fill_(3)
    x = torch.randn(1, 1, 9)
    rewritten: Any = ccrewrite.rewrite(model, x).model
    with torch.no_grad():
        rewritten[0].weight.add_(1)
        expected = (rewritten[0](x) - model[0](x)).abs().double()
    comparison = compare(model, rewritten, x, quick=True)
    first, second = (s["variants"]["rewritten"]["error"] for s in comparison.data["sites"])
    assert first["local"]["max_abs_error"] == first["propagated"]["max_abs_error"] == pytest.approx(expected.max().item())
    assert second["local"]["max_abs_error"] == 0
    assert second["propagated"]["mean_abs_error"] == pytest.approx(3 * expected.mean().item(), rel=1e-6)


def test_with_itself(compared: Compared) -> None:
    c = compare(compared.original, compared.original, compared.input, quick=True)
    assert c.summary() == "nothing was rewritten (6 convolution sites)"
    assert all(o["max_abs_error"] == o["mean_abs_error"] == 0 for o in c["rewritten"]["outputs"])
    assert c["rewritten"]["flops"] == c["original"]["flops"]
    assert c["rewritten"]["memory_bytes"] == c["original"]["memory_bytes"]
    assert "nothing was rewritten" in c.to_markdown()
    check(c)
    again = compare(compared.moved, compared.moved, compared.input, quick=True)
    assert again.summary() == "nothing was rewritten: both models have the same rewritten layers (6 convolution sites)"
    for site in again.data["sites"]:
        assert site["variants"]["rewritten"]["error"]["local"]["max_abs_error"] == 0


class Operations(TorchDispatchMode):
    """A clock that operations turn, some more than others: what a machine measures that does nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.random = 0.0, random.Random(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.now += self.random.lognormvariate(0, 0.05)
        return func(*args, **(kwargs or {}))


def test_with_itself_takes_as_long(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.00 within the intervals of the model and of its sites, but for one of the eight at most and that by little: a few in a
    hundred may miss (``test_timing`` counts them). Another model's intervals leave 1.00 out."""
    clock = Operations()
    timed = functools.partial(time_cases, clock=lambda: clock.now)
    for place in ("measure", "sites"):
        monkeypatch.setattr(importlib.import_module(f"ccrewrite.report.{place}"), "time_cases", timed)
    with clock:
        same = compare(compared.moved, compared.moved, compared.input, quick=True)
        other = compare(compared.original, compared.moved, compared.input, quick=True)

    def timings(c: Comparison) -> list[dict[str, float]]:
        entries = [c["rewritten"], *(site["variants"]["rewritten"] for site in c.data["sites"])]
        return [timing for entry in entries for timing in entry["latency"].values()]

    assert len(timings(same)) == 2 + 6
    assert sum(not timing["ratio_low"] <= 1 <= timing["ratio_high"] for timing in timings(same)) <= 1
    for timing in timings(same):
        assert timing["ratio_low"] <= 1.01
        assert timing["ratio_high"] >= 0.99
        assert timing["ratio"] == pytest.approx(1, abs=0.1)
    assert all(timing["ratio_low"] > 1 for timing in other["rewritten"]["latency"].values())


def test_a_mode_that_the_original_lacks_has_no_ratio() -> None:
    model, x = nn.Sequential(nn.Conv1d(1, 1, 3, dilation=2)).requires_grad_(False), torch.randn(1, 1, 9)
    rewritten = ccrewrite.rewrite(model, x).model
    rewritten.requires_grad_(True)
    c = compare(model, rewritten, x, quick=True)
    assert "training step" in c["rewritten"]["flops"]
    assert "training step" not in c["rewritten"]["latency"]
    assert c["rewritten"]["notes"] == ["no training step is timed: the original has none"]
    check(c)


def test_a_layer_that_pads_by_itself(compared: Compared) -> None:
    """Its convolution takes another input than the original's: no local error, but all the rest."""
    model, padding = (
        nn.Conv1d(2, 2, 3, padding=2, dilation=2),
        nn.Sequential(nn.ConstantPad1d(2, 0.0), nn.Conv1d(2, 2, 3, dilation=2)),
    )
    padding[1].load_state_dict(model.state_dict())
    c = compare(model, padding, torch.randn(1, 2, 9), quick=True)
    (site,) = c.data["sites"]
    found = site["variants"]["rewritten"]
    assert found["error"]["local"] is None
    assert found["error"]["propagated"]["max_abs_error"] == 0
    assert found["flops"] == site["variants"]["original"]["flops"]
    assert sites(c, "rewritten")[0]["local error"] == ""
    check(c)


def test_the_models_are_left_as_they_were(compared: Compared) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.BatchNorm2d(4), nn.Dropout()).train()
    rewritten = ccrewrite.rewrite(model, compared.input).model
    states = [copy.deepcopy(m.state_dict()) for m in (model, rewritten)]
    keys, before = [set(vars(m)) for m in rewritten.modules()], compared.input.clone()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    compare(model, rewritten, compared.input, quick=True)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(compared.input, before)
    for m, state in zip((model, rewritten), states, strict=True):
        assert all(x.training for x in m.modules())
        assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
        assert all(p.grad is None for p in m.parameters())
        assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())
    assert [set(vars(m)) for m in rewritten.modules()] == keys


def test_batches_scale_groups_and_internal_sizes(compared: Compared) -> None:
    data = compared.comparison.data
    assert [entry["batch"] for entry in data["batches"]] == [1, 3]
    assert all(entry["latency"].keys() == {"original", "rewritten", "trained"} for entry in data["batches"])
    rate = next(r for r in batches(compared.comparison) if (r["model"], r["batch"]) == ("original", "3"))["samples per second"]
    assert float(rate.replace(",", "")) == pytest.approx(3 / data["batches"][1]["latency"]["original"]["median_s"], abs=0.1)
    free, pinned = data["scale_groups"]["groups"]
    assert (free["sites"], free["native"], free["pins"]) == (["down"], [[10, 12]], [None, None])
    assert (pinned["sites"], pinned["native"]) == (["up"], [[20, 24]])
    assert all(pinned["pins"])
    assert [r["axes"] for r in scale_groups(compared.comparison)] == ["free free", "pinned pinned"]
    assert scale_groups(compared.comparison)[1]["pinned by"] == pinned["pins"][0]
    assert [p["name"] for p in data["trade"]["points"]] == ["native", "smaller"]
    assert [r["score"] for r in trade(compared.comparison)] == ["1", "0"]
    text = compared.comparison.to_markdown()
    for title in ("Inference at other batch sizes", "Internal sizes: speed and score", "Scale groups of the rewritten model"):
        assert f"## {title}\n" in text


def test_nothing_more_than_asked_for_is_measured_quickly(compared: Compared) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 3, stride=2))
    x = torch.randn(2, 1, 9)
    c = compare(model, ccrewrite.rewrite(model, x).model, x, quick=True, variants=["rewritten", "folded"])
    assert not c.data.keys() & {"batches", "scale_groups", "trade"}
    assert [v["name"] for v in c.data["variants"]] == ["original", "rewritten", "folded"]
    assert all("inference, compiled" not in v["latency"] for v in c.data["variants"])
    for sizes, message in (((0,), "at least 1 sample"), ((3,), "no batch to change")):
        with pytest.raises(InputError, match=message):
            batch_of(Inputs.of(x if 0 in sizes else torch.tensor(1.0)), sizes[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's, of autograd functions
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that compiles has a row; why another doesn't is said."""
    torch.manual_seed(0)

    class Odd(nn.Sequential):
        pass

    def refuse(graph: Any, inputs: Any) -> Any:
        raise ValueError("not this one")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: real(m, backend=refuse if isinstance(m, Odd) else "eager"))
    model, x = nn.Sequential(nn.Conv1d(1, 1, 3, dilation=2)), torch.randn(2, 1, 9)
    rewritten = ccrewrite.rewrite(model, x).model
    c = compare(model, rewritten, x, quick=True, compiled=True, variants={"odd": Odd(*model)})
    assert "inference, compiled" in c["original"]["latency"]
    assert c["rewritten"]["latency"]["inference, compiled"]["ratio"] > 0
    assert c["rewritten"]["notes"] == []
    assert "inference, compiled" not in c["odd"]["latency"]
    one = compare(
        model,
        rewritten,
        x,
        quick=True,
        compiled=["original"],
        variants={"lowered": real(rewritten, backend="eager")},  # pyright: ignore[reportArgumentType]
    )
    modes = {v["name"]: v["latency"].keys() & {"inference, compiled"} for v in one.data["variants"]}
    assert modes == {"original": {"inference, compiled"}, "rewritten": set(), "lowered": set()}
    with pytest.raises(InputError, match="compiled names 'other'; the models are original, rewritten"):
        compare(model, rewritten, x, quick=True, compiled=["other"])
    (note,) = c["odd"]["notes"]
    assert note.startswith("torch.compile: ")
    assert "not this one" in note
    assert f"- odd: {note}" in c.to_markdown()
    check(c)


def test_every_model_has_the_recompilations_that_it_has_alone() -> None:
    from torch._dynamo import config

    alone = config.recompile_limit, config.accumulated_recompile_limit
    with room_for(3):
        assert (config.recompile_limit, config.accumulated_recompile_limit) == (3 * alone[0], 3 * alone[1])
    assert (config.recompile_limit, config.accumulated_recompile_limit) == alone


def test_bad_arguments(compared: Compared) -> None:
    with pytest.raises(InputError, match="'original'"):
        compare(compared.original, compared.moved, compared.input, variants={"original": compared.moved})
    with pytest.raises(InputError, match="meta device"):
        compare(nn.Conv1d(1, 1, 2, device="meta"), nn.Conv1d(1, 1, 2), torch.randn(1, 1, 4))
    with pytest.raises(KeyError, match="no variant is called 'folded'; there are original, rewritten, trained"):
        compared.comparison["folded"]


def test_outputs_of_other_shapes_are_told() -> None:
    model, other = nn.Conv1d(1, 2, 3, dilation=2), nn.Conv1d(1, 2, 3)
    c = compare(model, other, torch.randn(1, 1, 12), quick=True)
    (output,) = c["rewritten"]["outputs"]
    assert not output["ok"]
    assert output["max_abs_error"] is None
    assert "became" in output["note"]
    check(c)
    assert "differs" in c.to_markdown()


def test_save_and_load(compared: Compared, tmp_path: Path) -> None:
    paths = compared.comparison.save(tmp_path / "a", html=False)
    assert [p.name for p in paths] == ["report.json", "report.md"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["report.json", "report.md"]
    assert Comparison.load(tmp_path / "a") == Comparison.load(paths[0]) == compared.comparison
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"schema": "ccrewrite-report/0"}))
    with pytest.raises(InputError, match=r"ccrewrite-report/0.*make the report again"):
        Comparison.load(other)
    with pytest.raises(InputError, match=r"none\.json can't be read"):
        Comparison.load(tmp_path / "none.json")


def test_no_machine_in_it(compared: Compared) -> None:
    text = compared.comparison.to_json() + compared.comparison.to_markdown()
    for private in (str(Path.home()), str(Path.cwd()), "/tmp", "site-packages"):
        assert private not in text
    environment = compared.comparison.data["environment"]
    assert environment["threads"] == 1
    assert environment["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{12}\+?|None", str(environment["git_revision"]))


@pytest.mark.parametrize("form", FORMATS)
def test_tables(compared: Compared, form: str) -> None:
    text = overview(compared.comparison, form)
    for word in ("rewritten", "trained", "median (ms)", "MFLOP", "added geometry"):
        assert word in text
    assert {"html": "<table>", "latex": "\\begin{tabular}", "markdown": "|---", "plain": "------"}[form] in text
    change = compared.comparison["rewritten"]["parameters"]
    original = compared.comparison["original"]["parameters"]["total"]
    percent = f"+{100 * change['added'] / original:.1f} "
    assert percent in text


def test_document(compared: Compared) -> None:
    text = document(compared.comparison)
    assert text.startswith(
        "# Net\n\n5 of 6 convolution sites rewritten. Inputs: 2x3x20x24 float32.\n\nMade by `make test`, quick"
    )
    assert "## Sites of trained" in text
    row = next(r for r in sites(compared.comparison, "rewritten") if r["site"] == "dilated")
    assert (row["became"], row["geometry"], row["drift (samples)"]) == ("DCLS", "12->12 k3 p4 d4", "mean 0.000, max 0.000")


def test_the_page_says_which_model_its_summary_is_of() -> None:
    demo = Comparison.load(Path(__file__).parents[2] / "reports" / "demo")
    text = demo.to_html()
    assert "<h2>The rewritten model against the original</h2>" in text
    tiles = re.findall(r"<li><small>(.*?)</small><b>(.*?)</b>", text)
    for name in ("fine-tuned", "folded", "lowered"):
        ratio = demo[name]["latency"]["inference"]["ratio"]
        assert (f"time, inference of the {name} model", f"× {ratio:.2f}") in tiles  # noqa: RUF001


def test_notebooks_and_terminals(compared: Compared) -> None:
    assert compared.comparison._repr_html_().startswith("<p>5 of 6 convolution sites rewritten</p><table>")
    assert str(compared.comparison).startswith("5 of 6 convolution sites rewritten\n\nmodel")


def edited(comparison: Comparison, edit: Any) -> Comparison:
    data = copy.deepcopy(comparison.data)
    edit(data)
    return Comparison(data)


def test_regression(compared: Compared) -> None:
    c = compared.comparison
    same = regression(c, c)
    assert {x.verdict for x in same.changes} == {"same"}
    assert not same.worse
    assert not same.notes
    assert str(same).endswith("nothing is worse")

    def worsen(data: dict[str, Any]) -> None:
        variant = data["variants"][1]
        variant["flops"]["inference"] += 1
        variant["memory_bytes"]["inference"] -= 1
        variant["parameters"]["added"] += 5
        variant["outputs"][0]["max_rel_error"] = 1e-7
        timing = variant["latency"]["inference"]
        timing |= {
            "ratio": timing["ratio_high"] * 2,
            "ratio_low": timing["ratio_high"] * 1.5,
            "ratio_high": timing["ratio_high"] * 3,
        }
        variant["latency"]["training step"]["ratio"] *= 1.0001
        data["environment"]["threads"] = 7
        del data["variants"][2]

    changed = regression(c, edited(c, worsen))
    verdicts = {x.quantity: x.verdict for x in changed.changes if x.model == "rewritten" and x.verdict != "same"}
    assert verdicts == {
        "FLOP, inference": "worse",
        "peak memory (bytes), inference": "better",
        "parameters, added": "changed",
        "max rel error, output['map']": "worse",
        "time ratio, inference": "worse",
        "time ratio, training step": "within noise",
    }
    assert {x.verdict for x in changed.changes if x.model == "trained"} == {"missing"}
    assert changed.notes == ("threads differ: 1 and 7",)
    assert len(json.loads(changed.to_json())["changes"]) == len(changed.changes)
    assert "<table>" in changed._repr_html_()


def test_compared_the_wrong_way_round() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1)).eval(), torch.randn(1, 3, 9, 9)
    rewritten = ccrewrite.rewrite(model, x).model
    assert "1 of 2 convolution sites rewritten in the first model" in compare(rewritten, model, x, quick=True).summary()


def test_a_damaged_report_names_file_and_key(compared: Compared, tmp_path: Path) -> None:
    file = compared.comparison.save(tmp_path, html=False)[0]
    good = file.read_text()
    for old, new, message in (
        ('"flops":', '"glops":', r"report\.json is damaged: .*flops is missing"),
        ('"total":', '"total":-', r"total: .* greater than or equal to 0"),
        ('"original":{', '"unoriginal":{', r"variants must have original"),
        ('"threads":1', '"threads":"one"', r"environment\.threads"),
        ('"quick":', '"quick":NaN,"q":', "is damaged: expected value"),
    ):
        assert old in good
        file.write_text(good.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            Comparison.load(file)


def test_a_report_where_nothing_can_be_written(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compared.comparison.save(tmp_path / "there", html=False)[0].read_text()

    def full(path: Path, *arguments: object, **named: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match="report.json can't be written: .*No space left"):  # noqa: RUF043
            compared.comparison.save(tmp_path / "there")
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["report.json", "report.md"]
    assert (tmp_path / "there" / "report.json").read_text() == before
    with pytest.raises(InputError, match="can't be written"):
        compared.comparison.save(tmp_path / "there" / "report.json")
