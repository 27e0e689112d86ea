"""What is private in Inductor: the pass that turns ``ccrewrite::dcls_conv`` into its ATen code, after the partitioner.

Before the partitioner the operators are opaque, so that it keeps for the backward what they say. After it they are expanded,
so that Inductor fuses what they are made of. ``CustomGraphPass`` and ``post_grad_custom_pre_pass`` exist in torch 2.11 to 2.15;
where they don't, the operators run their code eagerly inside the compiled model: right, but slow.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from ccrewrite import families, folded, gathering, ir
from ccrewrite.errors import InputError
from ccrewrite.families.regions import EXPANSIONS, REGIONS

try:
    from torch._inductor import config, list_mode_options
    from torch._inductor.custom_graph_pass import CustomGraphPass, CustomInferenceAwareGraphPass
    from torch._inductor.decomposition import select_decomp_table
except ImportError:  # pragma: no cover
    config = CustomGraphPass = CustomInferenceAwareGraphPass = list_mode_options = select_decomp_table = None

WORTH_SHARING = 2
"""So many equal calls in a graph are compiled as one subgraph."""


PASS = "post_grad_custom_pre_pass"


def options(own: Mapping[str, object] | None = None, compile_mode: str | None = None) -> dict[str, Any]:
    """For ``torch.compile(..., options=)``: ours, beside a user's ``own`` and those of one of torch.compile's modes. A pass of
    theirs at the same place, from ``own`` or set in Inductor's configuration now, runs after ours.

    Raises ``InputError`` for an unknown mode.
    """
    given = of_mode(compile_mode) | dict(own or {})
    known = CustomGraphPass is not None and hasattr(config, PASS)
    if not known:
        return given
    theirs: Any = given.get(PASS, getattr(config, PASS))
    several = isinstance(theirs, (list, tuple))
    passes = tuple(cast(Sequence[Any], theirs)) if several else () if theirs is None else (theirs,)
    return given | {PASS: _expansion(passes)}


def of_mode(compile_mode: str | None) -> dict[str, Any]:
    """Inductor's options for one of torch.compile's modes."""
    try:
        return dict(list_mode_options(compile_mode)) if compile_mode and list_mode_options else {}
    except RuntimeError as error:
        raise InputError(f"compile_mode is one of torch.compile's modes: {error}") from error


def code_hash() -> str | None:
    """Of the code that the operators stand for, and all that it calls: changes with it. None where some of it is in no file
    (a family in a notebook): nothing may then be taken from a cache."""
    brought = (*EXPANSIONS.values(), *(region.code for region in REGIONS.values()))
    if not all(isinstance(function, FunctionType) for function in brought):
        return None
    packages = {function.__module__.partition(".")[0] for function in brought}
    return _hash_of(frozenset(packages - {"ccrewrite"}))


@functools.cache
def _hash_of(packages: frozenset[str]) -> str | None:
    """Of this package's layers, and of others' whole ``packages``."""
    code = hashlib.sha256()
    for module in (families, folded, gathering, ir, *(sys.modules[name] for name in sorted(packages))):
        folders = [Path(folder) for folder in getattr(module, "__path__", ())]
        file = getattr(module, "__file__", None)
        if not folders and file is None:
            return None
        for source in sorted(f for folder in folders for f in folder.rglob("*.py")) or [Path(cast(str, file))]:
            code.update(source.read_bytes())
    return code.hexdigest()


def expand_(graph: fx.Graph) -> int:
    """Replace every operator of ours by its code, in place, for the shapes of the fake values in ``meta["val"]``. Returns how
    many there were.

    Calls that are alike share one subgraph, which Inductor compiles once and calls; one without an equal is expanded where it
    stands, and fused with its surroundings.
    """
    alike: dict[object, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in EXPANSIONS:
            alike.setdefault(_signature(node), []).append(node)
    for number, nodes in enumerate(alike.values()):
        code = _traced(nodes[0])
        if len(nodes) >= WORTH_SHARING:
            _share_(graph, f"ccrewrite_form_{number}", code, nodes)
        else:
            for node in nodes:
                _inline_(graph, code, node)
    if alike:
        graph.eliminate_dead_code()  # what the forward keeps, where nothing differentiates
        graph.lint()
    return sum(len(nodes) for nodes in alike.values())


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The tensors among ``node``'s arguments, lists included; one that is there twice, once."""
    return [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)]


def _signature(node: fx.Node) -> object:
    """Equal for calls whose code is the same; the node itself where a size is not a number, for symbols differ."""
    tensors = _tensors(node)
    values = [t.meta["val"] for t in tensors]
    sizes = [(*v.shape, *v.stride(), v.storage_offset()) for v in values]
    if len(tensors) < len(node.all_input_nodes) or not all(isinstance(n, int) for along in sizes for n in along):
        return node
    places = {tensor: place for place, tensor in enumerate(tensors)}
    arguments = fx.map_arg(node.args, lambda a: f"tensor {places[a]}")
    return node.target, tuple(sizes), tuple((v.dtype, v.device) for v in values), repr(arguments)


def _traced(node: fx.Node) -> fx.GraphModule:
    """``node``'s code as a graph whose placeholders are ``_tensors(node)``."""
    tensors = _tensors(node)

    def code(*given: Tensor) -> object:
        known = dict(zip(tensors, given, strict=True))
        return EXPANSIONS[node.target](*fx.map_arg(node.args, lambda a: known.get(a, a.meta["val"])))

    values: list[FakeTensor] = [t.meta["val"] for t in tensors]
    assert select_decomp_table is not None
    with values[0].fake_mode:
        return make_fx(code, decomposition_table=select_decomp_table())(*values)


def _share_(graph: fx.Graph, name: str, code: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    """Every one of ``nodes`` becomes a call of ``code``."""
    module = graph.owning_module
    assert module is not None
    module.add_module(name, code)
    several = isinstance(nodes[0].meta["val"], (tuple, list))
    if not several:  # a subgraph returns a tuple
        output = code.graph.output_node()
        output.args = (output.args,)
        code.recompile()
    for node in nodes:
        with graph.inserting_before(node):
            subgraph = graph.get_attr(name)
            call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (subgraph, name, *_tensors(node)))
            result = call if several else graph.call_function(operator.getitem, (call, 0))
        call.meta["val"] = node.meta["val"] if several else (node.meta["val"],)
        result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _inline_(graph: fx.Graph, code: fx.GraphModule, node: fx.Node) -> None:
    """``node`` becomes what ``code`` is made of."""
    given = iter(_tensors(node))
    copies: dict[fx.Node, fx.Node] = {}
    outputs: Any = ()
    with graph.inserting_before(node):
        for inner in code.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(given)
            elif inner.op == "output":
                outputs = fx.map_arg(inner.args[0], lambda a: copies[a])
            else:
                copies[inner] = graph.node_copy(inner, lambda a: copies[a])
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    else:
        for user in list(node.users):
            assert user.target is operator.getitem, user  # of a tuple or list
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)


def _expansion(others: Sequence[Any] = ()) -> Any:
    assert CustomGraphPass is not None
    assert CustomInferenceAwareGraphPass is not None
    plain, aware = CustomGraphPass, CustomInferenceAwareGraphPass

    class Expansion(aware):
        """The pass as Inductor takes it, ``others`` after it; its identity goes into the key of Inductor's cache."""

        def __call__(self, graph: fx.Graph, is_inference: bool) -> None:
            expand_(graph)
            for other in others:
                more = {"is_inference": is_inference} if isinstance(other, aware) else {}
                other(graph, **more)

        def uuid(self) -> object:
            """None, so nothing cached, where one of them has none."""
            known = [code_hash(), *(p.uuid() if isinstance(p, plain) else None for p in others)]
            return None if None in known else known[0] if len(known) == 1 else tuple(known)

    return Expansion()
