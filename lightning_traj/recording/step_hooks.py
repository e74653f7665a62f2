"""Hooks on optimizers that tell when a step is about to change the parameters, and when it has changed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class StepHooks:
    """Hooks on those of some optimizers whose ``step`` runs them.

    Args:
        on_ready: Function that is called with the optimizer when the gradients of its step are there and nothing has
            moved yet; several times if the step evaluates its closure several times.
        on_step: Function that is called with the optimizer right after its step; once also where ``step`` calls that
            of its parent class.
    """

    def __init__(self, on_ready: Callable[[Any], None], on_step: Callable[[Any], None]) -> None:
        self._on_ready, self._on_step = on_ready, on_step
        self._handles: list[Any] = []
        self._depths: dict[int, int] = {}  # calls of `step` that are running, by identity of the optimizer

    def move_to(self, optimizers: Sequence[Any]) -> None:
        """Remove the hooks from the optimizers that have them, and put them on these."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for optimizer in optimizers:
            if runs_hooks(optimizer):
                self._handles.append(optimizer.register_step_pre_hook(self._before))
                self._handles.append(optimizer.register_step_post_hook(self._after))

    def is_stepping(self, optimizer: Any) -> bool:
        """Whether a call of the optimizer's ``step`` is running."""
        return id(optimizer) in self._depths

    def forget_failed(self) -> None:
        """Forget calls of ``step`` that have raised: to be called between steps."""
        self._depths = {}

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        depth = self._depths[id(optimizer)] = self._depths.get(id(optimizer), 0) + 1
        if depth > 1:  # a `step` that calls its parent class's: hooks fire for both
            return None
        # The gradients are there once the closure has been evaluated.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._watched(closure, optimizer)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._watched(args[1], optimizer), *args[2:]), kwargs
        self._on_ready(optimizer)
        return None

    def _watched(self, closure: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            self._on_ready(optimizer)
            return result

        return evaluate

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        depth = self._depths.pop(id(optimizer), 1) - 1
        if depth:
            self._depths[id(optimizer)] = depth
        else:
            self._on_step(optimizer)


def runs_hooks(optimizer: Any) -> bool:
    """Whether an optimizer's ``step`` runs its step hooks, as far as its class and its attributes tell."""
    has_hooks = all(
        isinstance(getattr(optimizer, hooks, None), dict)
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    )
    return has_hooks and bool(getattr(type(optimizer).step, "hooked", False))  # set by torch where it wraps `step`


def with_inner(optimizer: Any) -> list[Any]:
    """Return an optimizer and those that it wraps."""
    found = [optimizer]
    for each in found:  # grows as it goes
        inner = (value for value in vars(each).values() if isinstance(value, Optimizer))
        found += [value for value in inner if all(value is not other for other in found)]
    return found
