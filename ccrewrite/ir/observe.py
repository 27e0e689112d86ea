"""Watching a model while it runs: which modules it calls, with what, and which convolutions."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from ccrewrite.ir.calls import CASTS, Call, as_call
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.program import Obstacle
from ccrewrite.ir.reach import reaches
from ccrewrite.ir.torch_private import always_called_of, forward_hooks_of, forward_pre_hooks_of
from ccrewrite.ir.typed import manual_seed, named_modules

if TYPE_CHECKING:
    from ccrewrite.ir.capture import Inputs


class Like(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class ModuleCall(NamedTuple):
    """What a module was called with. Where a tensor was, there is a ``Like``."""

    args: tuple[object, ...]
    kwargs: dict[str, object]


def module_calls(model: nn.Module, inputs: Inputs, modules: Mapping[str, nn.Module]) -> dict[str, list[ModuleCall]]:
    """How each of ``modules`` is called while ``model`` runs once, in evaluation mode and without gradients; by name, in order.

    >>> from ccrewrite.ir.capture import Inputs
    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> module_calls(model, Inputs.of(torch.ones(2, 3, 4)), {"flat": model[1]})["flat"][0].args[0].shape
    (2, 3, 4)
    """
    calls: dict[str, list[ModuleCall]] = {name: [] for name in modules}

    def before(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        calls[name].append(ModuleCall(*tree_map_only(Tensor, _like, (args, kwargs))))

    if modules:
        with preserved(model, inputs.tensors()), torch.no_grad(), watched(modules, before):
            manual_seed(0)
            inputs.run(model)
    return calls


def _like(tensor: Tensor) -> Like:
    return Like(tuple(tensor.shape), tensor.dtype, tensor.device)


@contextmanager
def watched(
    modules: Mapping[str, nn.Module],
    before: Callable[[str, tuple[object, ...], dict[str, object]], object],
    after: Callable[[str, tuple[object, ...], dict[str, object], Tensor], object] | None = None,
) -> Generator[None]:
    """Inside, ``before(name, args, kwargs)`` is told of every call of one of ``modules``, and ``after`` of its output too."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def enter(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str = name) -> None:
                before(name, args, kwargs)

            def leave(
                _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor, name: str = name
            ) -> None:
                if after is not None:
                    after(name, args, kwargs, output)

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if after is not None:
                stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


class SeenCall(NamedTuple):
    """One convolution that was called from Python. ``path`` is that of the module whose method calls it, ``weight`` the name
    of its weight, None where that is computed; ``again(x)`` makes the same call on another input. ``obstacle`` and ``within``
    are as a ``ConvCall``'s."""

    path: str
    weight: str | None
    call: Call[Tensor]
    output: Tensor
    again: Callable[[Tensor], Tensor]
    obstacle: Obstacle | None
    within: str


@contextmanager
def convolutions_seen(model: nn.Module, seen: Callable[[SeenCall], object]) -> Generator[ConvolutionMode]:
    """Inside, ``seen`` is told of every convolution that ``model`` calls from Python."""
    with module_stack(model) as stack, ConvolutionMode(tensor_names(model), stack, seen) as mode:
        yield mode


class ConvolutionMode(TorchFunctionMode):
    """Tells of convolution calls, while ``inside`` is 0: not of those that a convolution itself makes."""

    def __init__(self, names: dict[int, str], stack: list[tuple[str, nn.Module]], seen: Callable[[SeenCall], object]) -> None:
        super().__init__()
        self.names, self.stack, self.seen = names, stack, seen
        self.paths = {id(m): name for name, m in named_modules(stack[0][1])}
        self.held = {*self.paths, *names}
        self.inside = 0
        self._casts: list[Tensor] = []  # kept, so that an id stays theirs

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        call = None if self.inside else as_call(func, args, kwargs)
        if call is None:
            out = func(*args, **(kwargs or {}))
            if func in CASTS and id(args[0]) in self.names:
                self.names[id(out)] = self.names[id(args[0])]
                self._casts.append(cast(Tensor, out))
            return out
        self.inside += 1
        try:
            out = cast(Tensor, func(*args, **(kwargs or {})))
        finally:
            self.inside -= 1
        others, named = args[1:], {k: v for k, v in (kwargs or {}).items() if k != "input"}
        path, obstacle, within = self._caller()
        weight = self.names.get(id(call.weight))

        def again(x: Tensor) -> Tensor:
            return cast(Tensor, func(x, *others, **named))

        self.seen(SeenCall(path, weight, call, out, again, obstacle, within))
        return out

    def _caller(self) -> tuple[str, Obstacle | None, str]:
        """Path of the module whose method is running, and the obstacle between it and the call: an autograd function, or an
        object that is no module and holds the model or its weights, so that it could make the call by itself.

        Hooks tell only of modules that are called themselves, not of ``self.inner.encode(x)``; so the frames are asked.
        """
        path, function, other, frame = None, "", "", inspect.currentframe()
        forwards = _autograd_forwards()
        while frame is not None:
            code = frame.f_code
            if not function and (kind := forwards.get(code)) is not None:
                # A checkpoint runs what it was given again: a module's method sends its calls where they belong, a closure not.
                function = "" if path is not None and kind.__module__.startswith("torch.") else kind.__name__
            elif path is None and code.co_argcount:
                first: object = frame.f_locals.get(code.co_varnames[0])
                if isinstance(first, nn.Module):
                    if id(first) in self.paths and _is_method(type(first), code):
                        path = self.paths[id(first)]
                elif self._holds(first) and _is_method(type(first), code):
                    other = type(first).__name__
            frame = frame.f_back
        obstacle: Obstacle | None = "autograd-function" if function else "other-object" if other else None
        return self.stack[-1][0] if path is None else path, obstacle, function or other

    def _holds(self, thing: object) -> bool:
        """Whether it is somebody's own object that holds a module or tensor of the model."""
        if type(thing).__module__.partition(".")[0] in ("ccrewrite", "torch"):
            return False
        return any(reaches(value, self.held) for value in getattr(thing, "__dict__", {}).values())


def _autograd_forwards() -> dict[CodeType, type]:
    """The code of each autograd function's ``forward`` -> the function. ``apply`` is no Python from torch 2.14 on."""
    found: dict[CodeType, type] = {}
    kinds: list[type] = [torch.autograd.Function]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        forward = getattr(vars(kind).get("forward"), "__func__", None)
        code = getattr(inspect.unwrap(forward), "__code__", None) if forward is not None else None
        if isinstance(code, CodeType):
            found[code] = kind
    return found


def _is_method(kind: type, code: CodeType) -> bool:
    for above in kind.__mro__:
        found = vars(above).get(code.co_name)
        if inspect.isfunction(found) and getattr(inspect.unwrap(found), "__code__", None) is code:
            return True
    return False


def tensor_names(model: nn.Module) -> dict[int, str]:
    """``id`` of each parameter and buffer -> its first name."""
    names: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        names.setdefault(id(tensor), name)
    return names


@contextmanager
def module_stack(model: nn.Module) -> Generator[list[tuple[str, nn.Module]]]:
    """The modules of ``model`` whose forward is running, outermost first; kept by hooks on them that are gone afterwards. What
    other threads run, of this model too, is not on it."""
    stack: list[tuple[str, nn.Module]] = [("", model)]
    thread = threading.get_ident()
    with ExitStack() as hooks:
        for name, module in named_modules(model):

            def enter(module: nn.Module, args: object, name: str = name) -> None:
                if threading.get_ident() == thread:
                    stack.append((name, module))

            def leave(module: nn.Module, args: object, output: object) -> None:
                if threading.get_ident() == thread:
                    stack.pop()

            for handle in _hooked(module, enter, leave):
                hooks.callback(handle.remove)
        yield stack


def _hooked(module: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[RemovableHandle]:
    """``enter`` before the module's own hooks; ``leave`` after them, also where its forward raises. Put into the registries
    directly, for a ScriptModule refuses ``register_forward_hook``, and yet calls them."""
    first = cast("OrderedDict[int, Callable[..., object]]", forward_pre_hooks_of(module))
    before = RemovableHandle(first)
    first[before.id] = enter
    first.move_to_end(before.id, last=False)
    after = RemovableHandle(forward_hooks_of(module), extra_dict=always_called_of(module))
    forward_hooks_of(module)[after.id], always_called_of(module)[after.id] = leave, True
    yield from (before, after)
