"""Plans: sites, selection, rules, warnings and errors, and a plan as a table and as data."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO, build, plain

import ccrewrite
from ccrewrite import DilatedToDcls, StridedToCC, TransposedToCC, plan
from ccrewrite.errors import InputError, SelectionError, SelectionWarning
from ccrewrite.ir.sites import Plan

X = torch.zeros(1, 4, 33, 33)


class Net(nn.Module):
    """Every kind, in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 3, stride=2)
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, dilation=2, padding=2),
            nn.Conv2d(4, 4, 3, dilation=2, stride=2, padding=2),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.head = nn.ModuleDict({"large": nn.Conv2d(4, 4, 7, padding=3), "up": nn.ConvTranspose2d(4, 4, 2, stride=2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.head["up"](self.head["large"](self.body(self.stem(x))))


def codes(planned: Plan) -> dict[str, str]:
    return {s.name: s.decision.code for s in planned.sites}


def taken(planned: Plan) -> set[str]:
    return {s.name for s in planned.rewritten}


ALL = {"stem", "body.0", "body.1", "head.up"}


def test_the_default_plan() -> None:
    assert codes(plan(Net(), X)) == {
        "stem": "strided-to-cc",
        "body.0": "dilated-to-dcls",
        "body.1": "dilated-to-dcls",
        "body.2": "plain",
        "head.large": "large",
        "head.up": "transposed-to-cc",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "body"}, {"body.0", "body.1"}),
        ({"include": "body.*"}, {"body.0", "body.1"}),
        ({"include": "body.[01]"}, {"body.0", "body.1"}),
        ({"include": ["stem", "*.up"]}, {"stem", "head.up"}),
        ({"include": ("*",)}, ALL),
        ({"include": r"re:.*\.\d"}, {"body.0", "body.1"}),
        ({"exclude": ["re:body.*", "stem"]}, {"head.up"}),
        ({"exclude": "body"}, {"stem", "head.up"}),
        ({"exclude": ["stem", "head.*"]}, {"body.0", "body.1"}),
        ({"include": "body", "exclude": "body.1"}, {"body.0"}),
        ({"include": lambda site: site.geometry.stride == (2, 2)}, {"stem", "body.1", "head.up"}),
        ({"exclude": lambda site: "strided" in site.kinds}, {"body.0"}),
        ({"include": lambda site: site.output_shapes[0][-1] > 7, "exclude": "stem"}, {"body.0", "head.up", "body.1"}),
        ({"kinds": ["dilated"]}, {"body.0", "body.1"}),
        ({"kinds": "dilated"}, {"body.0", "body.1"}),
        ({"kinds": ["strided"]}, {"stem", "body.1", "head.up"}),
        ({"kinds": ("transposed",)}, {"head.up"}),
        ({"kinds": ["dilated", "transposed"]}, {"body.0", "body.1", "head.up"}),
        ({"kinds": ["strided"], "exclude": "head"}, {"stem", "body.1"}),
    ],
)
def test_selection(options: dict[str, Any], expected: set[str]) -> None:
    planned = plan(Net(), X, **options)
    assert taken(planned) == expected
    for site in planned:
        if site.name in ALL - expected:
            assert site.decision.code == "not-selected"
            (word,) = (w for w in ("include", "exclude", "kinds") if w in site.decision.message)
            assert word in options


@pytest.mark.parametrize(("option", "expected"), [("include", {"d.a[0]"}), ("exclude", {"d.b"})])
def test_a_name_with_brackets_is_hit_by_itself(option: str, expected: set[str]) -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.d = nn.ModuleDict({key: nn.Conv2d(4, 4, 3, dilation=2) for key in ("a[0]", "b")})

        def forward(self, x: Tensor) -> Tensor:
            return self.d["b"](self.d["a[0]"](x))

    assert taken(plan(Keyed(), X, **{option: "d.a[0]"})) == expected  # pyright: ignore[reportArgumentType]


def test_a_message_says_what_left_a_site_out() -> None:
    planned = plan(Net(), X, include="body", kinds=["dilated"])
    assert planned["stem"].decision.message == "not in include=body"
    planned = plan(Net(), X, kinds=["transposed", "dilated"])
    assert planned["stem"].decision.message == "not of kinds=transposed,dilated"


def test_the_first_rule_that_takes_a_site_rewrites_it() -> None:
    """``body.1`` is dilated and strided."""
    default = plan(Net(), X)["body.1"].decision
    strided_first = plan(Net(), X, rules=[StridedToCC(), DilatedToDcls(), TransposedToCC()])["body.1"].decision
    assert (default.code, strided_first.code) == ("dilated-to-dcls", "strided-to-cc")


def test_one_rule_alone() -> None:
    for rules in (DilatedToDcls(), [DilatedToDcls()], "dilated-to-dcls", ["dilated-to-dcls"], {"rule": "dilated-to-dcls"}):
        planned = plan(Net(), X, rules=rules)
        assert taken(planned) == {"body.0", "body.1"}
        assert codes(planned)["stem"] == "no-rule"
        assert planned["stem"].decision.message == "strided, and rules are dilated-to-dcls"


def test_rules_narrow_themselves() -> None:
    rules = [DilatedToDcls(exclude=("body.1",)), StridedToCC(include=("body",), basis="linear")]
    assert codes(plan(Net(), X, rules=rules)) == {
        "stem": "no-rule",
        "body.0": "dilated-to-dcls",
        "body.1": "strided-to-cc",
        "body.2": "plain",
        "head.large": "large",
        "head.up": "no-rule",
    }


def test_a_rules_globs_may_be_one_string_or_a_list() -> None:
    for globs in ("body", ["body"], ("body",)):
        assert DilatedToDcls(include=globs, exclude=globs) == DilatedToDcls(include=("body",), exclude=("body",))  # pyright: ignore[reportArgumentType]
    assert taken(plan(Net(), X, rules={"rule": "strided-to-cc", "include": "body"})) == {"body.1"}


def test_rules_as_mappings_are_those_of_a_toml_file() -> None:
    text = """
    [[rules]]
    rule = "dilated-to-dcls"
    sharing = "out"
    reach = 1
    include = ["body.0"]

    [[rules]]
    rule = "dilated-to-dcls"

    [[rules]]
    rule = "strided-to-cc"
    hidden = 4
    """
    planned = plan(Net(), X, rules=tomllib.loads(text)["rules"])
    assert planned.rules == (DilatedToDcls(include=("body.0",), sharing="out", reach=1), DilatedToDcls(), StridedToCC(hidden=4))
    assert "window 7x7" in planned["body.0"].decision.message
    assert "window 5x5" in planned["body.1"].decision.message


def test_options_reach_the_layers() -> None:
    rules = [DilatedToDcls(sharing="full", reach=2), StridedToCC(basis="linear", hidden=3)]
    model: Any = ccrewrite.rewrite(Net(), X, rules=rules).model
    assert model.body[0].sampling.offset.shape == (2, 4, 4, 3, 3)
    assert model.body[0].sampling.window == (9, 9)
    assert (model.stem.sampling.basis, model.stem.sampling.residual[0].last.weight.shape[1]) == ("linear", 3)


def test_options_of_cc_rules_reach_the_layers() -> None:
    """Those that change what is computed are left out of verification, and said."""
    rules = [StridedToCC(reach=0, hidden=3)]
    stem: Any = ccrewrite.rewrite(Net(), X, rules=rules).model.stem
    assert stem.sampling.window == stem.kernel_size
    for options in ({"kernel": "mlp"}, {"alignment": "centred"}):
        result: Any = ccrewrite.rewrite(Net(), X, rules=[StridedToCC(**options)])  # pyright: ignore[reportArgumentType]
        sampling: Any = result.model.stem.sampling
        assert (sampling.shift is None, sampling.alignment) == ("kernel" in options, options.get("alignment", "native"))
        assert result.plan["stem"].decision.rewritten
        assert "NOT exact: " in result.plan["stem"].decision.message
        assert "became approximate" in result.check.note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rules": ["dilated-to-dclz"]},
            "unknown rule 'dilated-to-dclz'; the rules are dilated-to-dcls, large-to-dcls, strided-to-cc, ",
        ),
        ({"rules": [{"sharing": "tap"}]}, "unknown rule None"),
        ({"rules": [{"rule": "strided-to-cc", "elements": 1}]}, "rule strided-to-cc has no option 'elements'; its options are"),
        ({"rules": [{"rule": "strided-to-cc", "sharing": "taps"}]}, "sharing must be one of 'tap', 'axis', found 'taps'"),
        ({"rules": [{"rule": "strided-to-cc", "sharing": "axis", "kernel": "mlp"}]}, "no residual to share"),
        ({"rules": [{"rule": "strided-to-cc", "reach": 3}]}, "reach must be 0 to 2 samples for kernel 'nodes', found 3"),
        (
            {"rules": [{"rule": "strided-to-cc", "kernel": "mlp", "reach": 1}]},
            "reach must be 0 to 0 samples for kernel 'mlp'",
        ),
        ({"rules": [42]}, "a rule must be one of DilatedToDcls, .* found 42"),
        ({"rules": [DilatedToDcls]}, "a rule must be one of DilatedToDcls, .* found <class"),
        ({"rules": [{"rule": "dilated-to-dcls", "sharing": "tip"}]}, "sharing must be one of .* found 'tip'"),
        ({"rules": [{"rule": "dilated-to-dcls", "reach": -1}]}, "reach must be at least 0 samples, found -1"),
        ({"rules": [{"rule": "strided-to-cc", "basis": "spline"}]}, "basis must be one of .* found 'spline'"),
        ({"rules": [{"rule": "strided-to-cc", "hidden": 0}]}, "hidden must be at least 1, found 0"),
        ({"include": 0}, "include takes names, globs or .* found 0"),
        ({"exclude": ["stem", 1]}, "exclude takes names, globs or .* found .'stem', 1."),
        ({"include": "re:["}, "'re:.' is no regular expression"),
        ({"rules": [{"rule": "strided-to-cc", "include": 3}]}, "rule strided-to-cc: include takes names, .* found 3"),
        ({"kinds": 3}, "kinds takes some of dilated, .* found 3"),
        ({"kinds": ["dilated", "slanted"]}, "unknown kind 'slanted'; the kinds are dilated, strided, transposed, large, plain"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    model = Net()
    for function in (ccrewrite.plan, ccrewrite.rewrite, ccrewrite.rewrite_):
        with pytest.raises(InputError, match=message):
            function(model, X, **options)
    assert not any(isinstance(m, ccrewrite.nn.Sampling) for m in model.modules())


@pytest.mark.filterwarnings("ignore::ccrewrite.errors.SelectionWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "nothing.*"}, r"include=nothing\.\* selects none of the 6 convolutions: stem, body\.0, "),
        ({"exclude": "*"}, r"exclude=\* selects none"),
        ({"include": lambda site: False}, "include=.*lambda.* selects none"),
        ({"include": "stem", "kinds": ["dilated"]}, "include=stem, kinds=dilated selects none"),
        ({"include": []}, "selects none"),
        ({"kinds": []}, "selects none"),
    ],
)
def test_selecting_nothing_is_an_error(options: dict[str, Any], message: str) -> None:
    for function in (ccrewrite.plan, ccrewrite.rewrite):
        with pytest.raises(SelectionError, match=message):
            function(Net(), X, **options)


@pytest.mark.parametrize("options", [{"include": ["stem", "stemm"]}, {"exclude": ["stemm"]}, {"exclude": "stemm"}])
def test_a_glob_that_hits_nothing_warns_at_the_users_line(options: dict[str, Any]) -> None:
    for function in (ccrewrite.plan, ccrewrite.rewrite, ccrewrite.rewrite_):
        with pytest.warns(SelectionWarning, match="'stemm' hits no convolution") as caught:
            function(Net(), X, **options)
        assert [w.filename for w in caught] == [__file__]


def test_plan_rewrites_nothing_where_nothing_can_be_and_rewrite_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 7))
    assert codes(plan(model, X)) == {"0": "plain", "1": "large"}
    for function in (ccrewrite.rewrite, ccrewrite.rewrite_):
        with pytest.raises(SelectionError, match="nothing to rewrite: 2 sites: 0 rewritten; left alone: 1 plain, 1 large"):
            function(model, X)


def test_a_model_without_convolutions() -> None:
    planned = plan(nn.Linear(4, 4), torch.zeros(4))
    assert (len(planned), str(planned)) == (0, "0 sites: 0 rewritten")
    with pytest.raises(SelectionError, match="nothing to rewrite: 0 sites"):
        ccrewrite.rewrite(nn.Linear(4, 4), torch.zeros(4))


def test_sites_say_where_they_are() -> None:
    model, inputs = build("reused")
    planned = plan(model, inputs)
    site = planned["conv"]
    assert [s.name for s in planned] == ["conv", "stages.0"]
    assert (site.calls, site.aliases, site.layer, site.functional) == (3, ("again", "stages.1"), "Conv2d", False)
    assert planned["stages.1"] is planned["again"] is site
    assert site.input_shapes == ((2, 4, 17, 17), (2, 4, 17, 17), (2, 4, 8, 8))
    assert taken(plan(model, inputs, include="again")) == {"conv"}
    assert taken(plan(model, inputs, include="stages")) == {"conv", "stages.0"}
    with pytest.raises(KeyError, match=r"no site is called 'conf'; the sites are 'conv', 'stages\.0'"):
        planned["conf"]


def test_names_of_functional_sites() -> None:
    model, inputs = build("functional")
    planned = plan(model, inputs)
    assert {s.name: (s.functional, s.weight, s.module, s.layer) for s in planned} == {
        "0": (False, "0.weight", "0", "Conv1d"),
        "1.kernel": (True, "1.kernel", "1", "Functional"),
        "1.blur": (True, "1.blur", "1", "Functional"),
        "1:conv1d": (True, None, "1", "Functional"),
    }
    assert taken(planned) == {"1.kernel", "1.blur", "1:conv1d"}


def test_one_weight_in_two_geometries_makes_two_sites() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return sum((F.conv2d(x, self.kernel, dilation=d, padding=d) for d in (1, 2, 3)), torch.zeros(()))

    planned = plan(Pyramid(), X)
    assert codes(planned) == {"kernel": "plain", "kernel#2": "dilated-to-dcls", "kernel#3": "dilated-to-dcls"}
    assert ccrewrite.rewrite(Pyramid(), X).check.ok


def test_a_model_that_is_one_layer() -> None:
    planned = plan(nn.Conv2d(4, 4, 3, stride=2), X)
    assert [(s.name, s.module) for s in planned] == [("(root)", "")]
    assert taken(plan(nn.Conv2d(4, 4, 3, stride=2), X, include="(root)")) == {"(root)"}


def test_never_called_layers_are_listed_last() -> None:
    model = Net()
    model.spare = nn.ModuleList([nn.Conv2d(4, 4, 3, dilation=2), nn.ConvTranspose1d(1, 1, 3)])
    planned = plan(model, X)
    assert [(s.name, s.decision.code, s.calls) for s in planned][-2:] == [
        ("spare.0", "never-called", 0),
        ("spare.1", "never-called", 0),
    ]


def test_a_plan_is_a_sequence_a_table_and_data() -> None:
    planned = plan(Net(), X)
    assert len(planned) == len(planned.sites) == len(list(planned)) == 6
    assert planned.summary() == "6 sites: 4 rewritten; left alone: 1 plain, 1 large"
    every, lines = planned.table(all=True).splitlines(), str(planned).splitlines()
    assert every[0].split() == ["site", "layer", "kinds", "geometry", "calls", "decision", "message"]
    assert len(every) == 2 + 6 + 1
    assert len(lines) == 2 + 4 + 1, "what is left alone is counted in the last line"
    assert lines[-1] == planned.summary()
    untouched = plan(Net(), X, rules=[])
    assert len(str(untouched).splitlines()) == 2 + 6 + 1, "where nothing is rewritten, all say why"
    data = json.loads(planned.to_json())
    assert data["how"] == "export"
    assert [r["rule"] for r in data["rules"]] == ["dilated-to-dcls", "strided-to-cc", "transposed-to-cc"]
    site = data["sites"][1]
    assert site["name"] == "body.0"
    assert site["kinds"] == ["dilated"]
    assert site["geometry"]["dilation"] == [2, 2]
    assert site["decision"] == {"rewritten": True, "code": "dilated-to-dcls", "message": planned["body.0"].decision.message}
    assert (site["dtype"], site["device"]) == ("float32", "cpu")


@pytest.mark.parametrize("name", ZOO)
def test_a_plan_touches_nothing_and_says_what_rewrite_does(name: str) -> None:
    model, inputs = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(n, type(m), m.training) for n, m in model.named_modules()]
    planned = plan(model, inputs)
    assert [(n, type(m), m.training) for n, m in model.named_modules()] == modules
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    result = ccrewrite.rewrite(model, inputs)
    assert codes(result.plan) == codes(planned)
    assert [s.geometry for s in result.plan] == [s.geometry for s in planned]


def test_how_can_be_forced() -> None:
    model, inputs = build("plain")
    assert plan(model, inputs, how="observe").how == "observed"
    assert plan(model, inputs, how="export").how == "export"
    assert codes(plan(model, inputs, how="observe")) == codes(plan(model, inputs))


def test_a_plan_of_a_batch_norm_net_in_training_mode_keeps_its_statistics() -> None:
    model: Any = plain().train()
    plan(model, torch.randn(2, 4, 17, 17), how="observe")
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert int(model[1].num_batches_tracked) == 0
