"""Listen to single modules: what goes in, what comes out, which gradients come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from treadle.errors import CallbackError, UsageError
from treadle.interrupts import undivided
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors

# f(module, inputs, output); in the backward pass f(module, gradients of inputs, of outputs).
HookFunc = Callable[[nn.Module, Any, Any], object]


class Hook(AbstractContextManager["Hook"]):
    """Calls `hook_func(module, inputs, output)` whenever `m` has run, and keeps what it returns.

    A context manager: the hook goes when the `with` block is left, however that happens; without
    one, by `remove()`.

    Args:
        m: the module.
        hook_func: gets the module, its inputs (a tuple) and its output. What it returns does not
            change the output.
        is_forward: if not, it is called in the backward pass instead, with the gradients of the
            inputs and of the outputs (two tuples).
        detach: hand it tensors without their graph.
        cpu: hand it tensors on the CPU. Every run of the module then waits for the device.

    Attributes:
        stored: what `hook_func` returned last; None before.

    Raises:
        UsageError: if `m` is no module.

    >>> layer = nn.Linear(2, 3)
    >>> with Hook(layer, lambda module, inputs, output: output.shape) as hook:
    ...     _ = layer(nn.init.ones_(Tensor(4, 2)))
    >>> hook.stored
    torch.Size([4, 3])
    """

    def __init__(
        self,
        m: nn.Module,
        hook_func: HookFunc,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
    ) -> None:
        _check_modules([m])
        self.hook_func, self.detach, self.cpu = hook_func, detach, cpu
        self.stored: Any = None
        register = m.register_forward_hook if is_forward else m.register_full_backward_hook
        self.handle = register(self._hear)

    def _hear(self, module: nn.Module, inputs: Any, output: Any) -> None:
        heard = (inputs, output)
        if self.detach:
            heard = map_tensors(Tensor.detach, heard)
        if self.cpu:
            heard = map_tensors(Tensor.cpu, heard)
        self.stored = self.hook_func(module, *heard)

    def remove(self) -> None:
        """Take the hook off the module; `stored` stays."""
        self.handle.remove()

    def __exit__(self, *error: object) -> None:
        self.remove()


class Hooks(AbstractContextManager["Hooks"]):
    """A `Hook` on each of the modules `ms`, to be indexed and iterated like a list."""

    def __init__(
        self,
        ms: Iterable[nn.Module],
        hook_func: HookFunc,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
    ) -> None:
        modules = list(ms)
        _check_modules(modules)  # all of them, before one has a hook
        self.hooks = [Hook(m, hook_func, is_forward, detach, cpu) for m in modules]

    @property
    def stored(self) -> list[Any]:
        """What each hook keeps, in the order of the modules."""
        return [hook.stored for hook in self.hooks]

    def __getitem__(self, index: int) -> Hook:
        return self.hooks[index]

    def __len__(self) -> int:
        return len(self.hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self.hooks)

    def remove(self) -> None:
        """Take all hooks off."""
        for hook in self.hooks:
            hook.remove()

    def __exit__(self, *error: object) -> None:
        self.remove()


def _check_modules(modules: list[nn.Module]) -> None:
    for m in modules:
        if not isinstance(m, nn.Module):
            raise UsageError(f"a hook listens to an nn.Module, and got {m!r}; give a module.")


def hook_output(
    module: nn.Module, detach: bool = True, cpu: bool = False, grad: bool = False
) -> Hook:
    """A `Hook` that keeps the output of `module`, or with `grad` the gradients of its outputs (a
    tuple). What an in-place layer behind it does to the output shows in what is kept.

    >>> layer = nn.Linear(2, 3)
    >>> with hook_output(layer) as hook:
    ...     out = layer(nn.init.ones_(Tensor(4, 2)))
    >>> bool((hook.stored == out).all())
    True
    """
    return Hook(module, _output, not grad, detach, cpu)


def hook_outputs(
    modules: Iterable[nn.Module], detach: bool = True, cpu: bool = False, grad: bool = False
) -> Hooks:
    """`hook_output` of several modules."""
    return Hooks(modules, _output, not grad, detach, cpu)


def _output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output


class HookCallback(Callback):
    """Calls its method `hook(module, inputs, output)` whenever one of the modules has run in a
    training batch; for subclasses to write. The hooks are there while a batch is trained on, and go
    however that ends.

    Args:
        modules: the modules to listen to; by default those of the model that have no parts.
        every: listen in every so many batches of an epoch only.
        is_forward, detach, cpu: as for `Hook`.
        include_paramless: by default also those modules that have no parameters, such as ReLU.

    Attributes:
        layers: the modules by their names in the model, once a fit has started.
        hooks: a `Hook` on each, of the last batch listened in; `hooks[i].stored` is what `hook`
            returned last, None where the module did not run.

    Raises:
        UsageError: if `every` is below 1.

    >>> class OutputMeans(HookCallback):
    ...     def hook(self, module, inputs, output):
    ...         return output.mean()
    """

    run_valid = False

    def __init__(
        self,
        modules: Iterable[nn.Module] | None = None,
        every: int = 1,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
        include_paramless: bool = False,
    ) -> None:
        if every < 1:
            raise UsageError(f"{self} listens in every so many batches; every={every} is below 1.")
        self.modules = None if modules is None else list(modules)
        self.every, self.include_paramless = every, include_paramless
        self.layers: dict[str, nn.Module] = {}
        self.hook_kwargs = {"is_forward": is_forward, "detach": detach, "cpu": cpu}

    def before_fit(self) -> None:
        names = {m: name for name, m in self.model.named_modules()}
        modules = self.modules
        if modules is None:
            modules = [m for m in names if self._is_layer(m)]
        self.layers = {names.get(m) or f"{type(m).__name__} {i}": m for i, m in enumerate(modules)}
        self.hooks = Hooks([], self.hook)
        self.scope.callback(self._remove)

    def _is_layer(self, m: nn.Module) -> bool:
        has_params = next(m.parameters(), None) is not None
        return (has_params or self.include_paramless) and next(m.children(), None) is None

    @undivided
    def before_batch(self) -> None:
        if self.iter % self.every == 0:
            self.hooks = Hooks(self.layers.values(), self.hook, **self.hook_kwargs)

    def after_batch(self) -> None:
        self._remove()

    def _remove(self) -> None:
        self.hooks.remove()

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> object:
        """What to do when `module` has run; what it returns is kept as `stored`."""
        raise CallbackError(f"{self} does not say what to do; give it hook(module, inputs, output)")
