"""Count of the optimizer steps really taken: by step hooks, or by the trainer's count where these cannot fire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_traj.recording.step_hooks import StepHooks, runs_hooks


@dataclass(frozen=True)
class Look:
    """One of at most two looks at the parameters before an optimizer step.

    Between them, the training loop's own hooks may clip gradients or move the parameters.

    Attributes:
        is_first: Whether this is the first look at this step: gradients are as they were computed.
        is_last: Whether it is the last one: only the step itself moves the parameters after it, as far as is known.
        has_gradients: Whether the gradients of the step are there.
    """

    is_first: bool = True
    is_last: bool = True
    has_gradients: bool = True


@dataclass
class _Coming:
    """Step that is coming.

    Attributes:
        optimizer: Optimizer that is about to step.
        is_seen: Whether the parameters have been looked at for the last time.
    """

    optimizer: Any
    is_seen: bool = False


class StepCounter:
    """Counts the optimizer steps of a run, and reports each one right before and right after it is taken.

    A step is one call of ``step()`` of an optimizer that the trainer holds. With several optimizers, the calls of each
    one count. SAM counts once where one call evaluates its closure twice, and twice where each half is its own call.

    Step hooks are the source: they see neither batches that only accumulate gradients nor steps that a GradScaler
    skips. They follow the optimizers that the trainer holds now. Some wrappers never run them. For such optimizers, the
    steps by which the trainer's own count (``global_step``) goes up are counted. That includes skipped steps, and is
    noticed when the next step is announced or the batch ends.

    Attributes:
        count: Optimizer steps taken so far.
    """

    _say: Callable[[str], None] | None
    _before: Callable[[Any, Look], None] | None
    _after: Callable[[Any, int], None] | None

    def __init__(self) -> None:
        self.count = 0
        self._hooks = StepHooks(self._look_last, self._take)
        self.stop()

    def __getstate__(self) -> dict[str, int]:
        return {"count": self.count}  # hooks belong to the optimizers of this process

    def __setstate__(self, state: dict[str, int]) -> None:
        StepCounter.__init__(self)
        self.count = state["count"]

    def start(
        self,
        optimizers: Sequence[Any],
        global_step: int,
        *,
        say: Callable[[str], None],
        before: Callable[[Any, Look], None] | None = None,
        after: Callable[[Any, int], None] | None = None,
        skips: bool = False,
    ) -> None:
        """Begin to count.

        Args:
            optimizers: The trainer's optimizers.
            global_step: The trainer's own count, which is followed from here on.
            say: Function that shows the user one line.
            before: Function that is called before each step with its optimizer, once for each look at the parameters.
            after: Function that is called right after a step with its optimizer, or None where that is not known, and
                with the number of steps: more than one only where hooks cannot fire and several steps are noticed
                together.
            skips: Whether a GradScaler may skip steps that ``global_step`` counts.
        """
        self.stop()
        self._say, self._before, self._after, self._skips = say, before, after, skips
        self._global_step = global_step
        self._watch(optimizers)

    def stop(self) -> None:
        """Remove all hooks, and forget the optimizers."""
        self._hooks.move_to([])
        self._hooks.forget_failed()
        self._optimizers: list[Any] = []
        self._silent: list[Any] = []  # those whose hooks cannot fire
        self._coming: _Coming | None = None
        self._fired = 0  # steps that hooks have seen since `global_step` was looked at
        self._announces = False  # whether the steps of silent optimizers are announced
        self._say = self._before = self._after = None
        self._skips = False
        self._global_step = 0

    def batch_starts(self, optimizers: Sequence[Any]) -> None:
        """Take note that a batch starts, and of the optimizers that the trainer holds now."""
        self._coming = None  # its step was not taken, or has raised
        self._hooks.forget_failed()
        self._watch(optimizers)
        if not self._announces:  # a wrapper that ignores the closure keeps Lightning from announcing its steps
            for optimizer in self._silent:
                self._report_coming(optimizer, Look(has_gradients=False))

    def announce(self, optimizer: Any, optimizers: Sequence[Any], global_step: int) -> None:
        """Take note that a step is about to be taken; each evaluation of its closure may call this.

        Args:
            optimizer: Optimizer that is about to step.
            optimizers: Optimizers that the trainer holds now.
            global_step: The trainer's own count.
        """
        self.follow(global_step)
        self._watch(optimizers)
        silent = any(optimizer is other for other in self._silent)
        self._announces = self._announces or silent
        # Outside of `step` (as under a GradScaler) it is a new step. Within one, the first evaluation counts.
        is_within = self._hooks.is_stepping(optimizer)
        if not silent and not is_within:
            self._coming = None
        # A hook looks again right before the step, unless hooks cannot fire, or came too late for this step.
        self._look(optimizer, is_last=not (is_within or self._skips) or silent, is_sure=silent)

    def follow(self, global_step: int) -> None:
        """Count the steps that hooks have missed; to be called when a batch has ended.

        Args:
            global_step: The trainer's own count.
        """
        missed, self._global_step = global_step - self._global_step - self._fired, global_step
        self._fired, optimizer = 0, None if self._coming is None else self._coming.optimizer
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

    def _watch(self, optimizers: Sequence[Any]) -> None:
        """Move the hooks to these optimizers, if they are others than before."""
        if list(map(id, optimizers)) == list(map(id, self._optimizers)):
            return
        if self._optimizers:
            self._tell("the Trainer's optimizers were replaced; steps of the new ones are counted from here on.")
        self._hooks.move_to(optimizers)
        self._optimizers, self._silent, self._announces = list(optimizers), [], False
        self._silence([optimizer for optimizer in optimizers if not runs_hooks(optimizer)])

    def _silence(self, optimizers: Sequence[Any]) -> None:
        """Count the steps of these optimizers by the trainer's count, and say so."""
        if optimizers:
            self._silent += optimizers
            kinds = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
            self._tell(f"step hooks of {kinds} do not fire; its steps are counted by trainer.global_step.")

    def _look_last(self, optimizer: Any) -> None:
        self._look(optimizer, is_last=True, is_sure=True)

    def _look(self, optimizer: Any, is_last: bool, is_sure: bool) -> None:
        """Report the first look at a step, and the last one; others are those of later evaluations of its closure."""
        is_first = self._coming is None or self._coming.optimizer is not optimizer
        if is_first:
            self._coming = _Coming(optimizer)
        assert self._coming is not None
        is_last = is_last and not self._coming.is_seen
        if is_first or is_last:
            self._coming.is_seen = self._coming.is_seen or is_sure
            self._report_coming(optimizer, Look(is_first, is_last))

    def _take(self, optimizer: Any) -> None:
        self._fired += 1
        self._finish(optimizer, 1)

    def _report_coming(self, optimizer: Any, look: Look) -> None:
        if self._before is not None:
            self._before(optimizer, look)

    def _finish(self, optimizer: Any, number: int) -> None:
        self._coming = None
        self.count += number
        if self._after is not None:
            self._after(optimizer, number)

    def _tell(self, line: str) -> None:
        if self._say is not None:
            self._say(line)
