"""Count of the optimizer steps really taken: by step hooks, or by the Trainer's count where these cannot fire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class StepCounter:
    """Counts the optimizer steps of a run, and reports each one right before and right after it is taken.

    A step is one call of ``step()`` of an optimizer that the Trainer holds. With several optimizers each one's calls
    count. SAM counts once where one call evaluates its closure twice, and twice where each half is a call of its own.

    Step hooks are the source: they see neither batches that only accumulate gradients nor steps that a GradScaler
    skips. They follow the optimizers that the Trainer holds now. Some wrappers never run them; of such optimizers, the
    steps by which ``trainer.global_step`` goes on are counted. That includes skipped steps, and is noticed when the
    next step is announced or the batch ends.

    Attributes:
        count: Optimizer steps taken so far.
    """

    _say: Callable[[str], None] | None
    _before: Callable[[Any, bool], None] | None
    _after: Callable[[Any, int], None] | None

    def __init__(self) -> None:
        self.count = 0
        self.stop()

    def __getstate__(self) -> dict[str, int]:
        return {"count": self.count}  # hooks belong to the optimizers of this process

    def __setstate__(self, state: dict[str, int]) -> None:
        self.count = state["count"]
        self.stop()

    def start(
        self,
        optimizers: Sequence[Any],
        global_step: int,
        *,
        say: Callable[[str], None],
        before: Callable[[Any, bool], None] | None = None,
        after: Callable[[Any, int], None] | None = None,
        skips: bool = False,
    ) -> None:
        """Begin to count.

        Args:
            optimizers: The Trainer's optimizers.
            global_step: The Trainer's count, from which on it is followed.
            say: Shows the user one line.
            before: Called right before each step with its optimizer, and whether the gradients of the step are there.
            after: Called right after with its optimizer, or None where it is not known, and the number of steps: more
                than one only where hooks cannot fire and several steps are noticed together.
            skips: Whether a GradScaler may skip steps that ``global_step`` counts.
        """
        self.stop()
        self._say, self._before, self._after, self._skips = say, before, after, skips
        self._global_step = global_step
        self._hook(optimizers)

    def stop(self) -> None:
        """Remove all hooks, and forget the optimizers."""
        for handle in getattr(self, "_handles", ()):
            handle.remove()
        self._handles: list[Any] = []
        self._optimizers: list[Any] = []
        self._silent: list[Any] = []  # those whose hooks cannot fire
        self._announced: Any = None  # optimizer whose step is coming, and has been reported
        self._depths: dict[int, int] = {}  # calls of `step` that are running, by optimizer
        self._fired = 0  # steps that hooks have seen since `global_step` was looked at
        self._announces = False  # whether Lightning announces the steps of silent optimizers
        self._say = self._before = self._after = None
        self._skips = False
        self._global_step = 0

    def batch_starts(self, optimizers: Sequence[Any]) -> None:
        """Look whether the Trainer still holds the same optimizers."""
        self._announced, self._depths = None, {}  # of a step that was not taken, or raised
        self._hook(optimizers)
        if not self._announces:  # a wrapper that ignores the closure keeps Lightning from announcing its steps
            for optimizer in self._silent:
                self._report_coming(optimizer, False)

    def announce(self, optimizer: Any, optimizers: Sequence[Any], global_step: int) -> None:
        """Take note that Lightning is about to step: called by each evaluation of a step's closure."""
        self.follow(global_step)
        self._hook(optimizers)
        silent = any(optimizer is other for other in self._silent)
        self._announces = self._announces or silent
        # Outside of `step` (as under a GradScaler) it is a new step; within one, the first evaluation counts.
        if silent or id(optimizer) in self._depths:
            self._get_ready(optimizer)
        else:
            self._announced = optimizer
            self._report_coming(optimizer, True)

    def follow(self, global_step: int) -> None:
        """Count the steps that hooks have missed; called when a batch has ended."""
        missed, self._global_step = global_step - self._global_step - self._fired, global_step
        self._fired, optimizer = 0, self._announced
        if missed <= 0:
            return
        if optimizer is None:
            # Without an announcement the module's own `optimizer_step` may have left the step out.
            if not self._silent:
                return
            optimizer = self._silent[0] if len(self._silent) == 1 else None
        elif not any(optimizer is other for other in self._silent):
            if self._skips:
                return
            self._silence([optimizer])
        self._finish(optimizer, missed)

    def _hook(self, optimizers: Sequence[Any]) -> None:
        """Move the hooks to these optimizers, if they are others than before."""
        if len(optimizers) == len(self._optimizers) and all(map(_same, optimizers, self._optimizers)):
            return
        if self._optimizers:
            self._tell("the Trainer's optimizers were replaced; steps of the new ones are counted from here on.")
        for handle in self._handles:
            handle.remove()
        self._optimizers, self._handles, self._silent, self._announces = list(optimizers), [], [], False
        for optimizer in optimizers:
            if runs_hooks(optimizer):
                self._handles.append(optimizer.register_step_pre_hook(self._on_pre_step))
                self._handles.append(optimizer.register_step_post_hook(self._on_post_step))
        self._silence([optimizer for optimizer in optimizers if not runs_hooks(optimizer)])

    def _silence(self, optimizers: Sequence[Any]) -> None:
        if optimizers:
            self._silent += optimizers
            kinds = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
            self._tell(f"step hooks of {kinds} do not fire; its steps are counted by trainer.global_step.")

    def _on_pre_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        depth = self._depths[id(optimizer)] = self._depths.get(id(optimizer), 0) + 1
        if depth > 1:  # a `step` that calls its parent class's: hooks fire for both
            return None
        # The gradients are there once the closure has been evaluated.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._watched(closure, optimizer)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._watched(args[1], optimizer), *args[2:]), kwargs
        self._get_ready(optimizer)
        return None

    def _watched(self, closure: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            self._get_ready(optimizer)
            return result

        return evaluate

    def _on_post_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        depth = self._depths.pop(id(optimizer), 1) - 1
        if depth:
            self._depths[id(optimizer)] = depth
            return
        self._fired += 1
        self._finish(optimizer, 1)

    def _get_ready(self, optimizer: Any) -> None:
        if self._announced is not optimizer:
            self._announced = optimizer
            self._report_coming(optimizer, True)

    def _report_coming(self, optimizer: Any, has_gradients: bool) -> None:
        if self._before is not None:
            self._before(optimizer, has_gradients)

    def _finish(self, optimizer: Any, number: int) -> None:
        self._announced = None
        self.count += number
        if self._after is not None:
            self._after(optimizer, number)

    def _tell(self, line: str) -> None:
        if self._say is not None:
            self._say(line)


def runs_hooks(optimizer: Any) -> bool:
    """Whether an optimizer's ``step`` runs its step hooks, as far as its class and its attributes tell."""
    has_hooks = all(
        isinstance(getattr(optimizer, hooks, None), dict)
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    )
    return has_hooks and bool(getattr(type(optimizer).step, "hooked", False))  # set by torch where it wraps `step`


def with_inner(optimizer: Any) -> list[Any]:
    """An optimizer, and those that it wraps."""
    found = [optimizer]
    for each in found:  # grows as it goes
        inner = (value for value in vars(each).values() if isinstance(value, Optimizer))
        found += [value for value in inner if all(value is not other for other in found)]
    return found


def _same(a: Any, b: Any) -> bool:
    return a is b
