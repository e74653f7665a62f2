"""Counting steps: whatever becomes of the optimizers and their hooks, every step that is taken is seen."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_traj import AtSteps, EveryNSteps, HybridTraining, TrajectoryCallback
from lightning_traj.recording.step_hooks import runs_hooks, with_inner
from lightning_traj.recording.steps import Look, StepCounter
from models import BATCHES, Module, TwoOptimizers, batches
from optimizers import SGD, Bare, Deaf, Lookahead, Manual, Sam, Stepping

REPLACED = "the Trainer's optimizers were replaced"
FOLLOWS = "counted by trainer.global_step"


# Optimizers that are replaced -----------------------------------------------------------------------------------


class SetUpAgain(Stepping):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch:
            self.trainer.strategy.setup_optimizers(self.trainer)


class Assigned(Stepping):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.optimizers = [self.make(list(self.parameters()))]


class WithinAnEpoch(Stepping):
    """Only after the callbacks have had their turn in this batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 6:
            self.trainer.optimizers = [self.make(list(self.parameters()))]


class ByAWrapper(Stepping):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.optimizers = [Bare(self.trainer.optimizers[0])]


@pytest.mark.parametrize("kind", [SetUpAgain, Assigned, WithinAnEpoch, ByAWrapper])
def test_hooks_follow_the_optimizers(fit: Any, kind: type[Stepping], caplog: Any) -> None:
    epochs, hybrid = TrajectoryCallback(window=4), HybridTraining(train="net.2.*", when=AtSteps([9]))
    tracks = ("weights", "gradient", "update", "first_moment")
    steps = [TrajectoryCallback(track=track, schedule=EveryNSteps(1), name=track) for track in tracks]
    with caplog.at_level(logging.INFO):
        trainer = fit(epochs, *steps, hybrid, module=lambda: kind(SGD))
    assert epochs.trajectory.steps.tolist() == [0, 4, 8, 12]
    assert epochs.trajectory.windows.steps == (4, 8, 12)
    for callback in steps:
        assert callback.trajectory.steps.tolist() == list(range(callback.track != "weights", 13))
    assert [event.step for event in hybrid.timeline.events] == [9]
    assert f"traj: {REPLACED}" in caplog.text
    assert f"{hybrid.name}: {REPLACED}" in caplog.text
    assert (FOLLOWS in caplog.text) == (kind is ByAWrapper)
    updates = np.stack([vector(after) - vector(before) for before, _, after in trainer.lightning_module.moves])
    np.testing.assert_allclose(steps[2].trajectory.gram("*"), updates @ updates.T, rtol=1e-5, atol=1e-7)
    for optimizer in trainer.optimizers:
        assert not getattr(optimizer, "_optimizer_step_post_hooks", None)
        assert not getattr(optimizer, "_optimizer_step_pre_hooks", None)


def vector(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat([tensor.double().flatten() for tensor in tensors]).numpy()


def test_nothing_is_said_where_nothing_is_out_of_the_ordinary(fit: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit(TrajectoryCallback(), HybridTraining(train="bias", when=2), module=TwoOptimizers)
    assert REPLACED not in caplog.text
    assert FOLLOWS not in caplog.text


# Hooks that do not fire, and hooks that rightly do not ------------------------------------------------------------


def test_a_step_that_was_overwritten_is_found_out_by_what_it_does(fit: Any, caplog: Any) -> None:
    class Overwritten(Stepping):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            optimizer.step = partial(torch.optim.SGD.step.__wrapped__, optimizer)  # type: ignore[method-assign]
            assert runs_hooks(optimizer)
            return optimizer

    epochs, every = TrajectoryCallback(name="epochs"), TrajectoryCallback(schedule=EveryNSteps(1))
    with caplog.at_level(logging.INFO):
        fit(epochs, every, module=lambda: Overwritten(SGD))
    assert epochs.trajectory.steps.tolist() == [0, 4, 8, 12]
    assert every.trajectory.steps.tolist() == list(range(13))
    assert caplog.text.count(FOLLOWS) == 2  # once each


class Overflowing(Stepping):
    """Every third batch has gradients that are not finite, and the GradScaler skips its step."""

    def loss(self, batch: Any) -> Tensor:
        loss = super().loss(batch)
        return loss * torch.inf if len(self.moves) % 3 == 2 else loss


@pytest.mark.parametrize("make", [SGD, lambda parameters: Bare(SGD(parameters))])
def test_what_a_grad_scaler_skips_is_no_missing_hook(fit: Any, make: Any, caplog: Any) -> None:
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1.0))
    callbacks = [TrajectoryCallback(track=track, schedule=EveryNSteps(1)) for track in ("weights", "update")]
    with caplog.at_level(logging.INFO):
        trainer = fit(*callbacks, module=lambda: Overflowing(make), plugins=[precision])
    moves = trainer.lightning_module.moves
    moved = [any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) for before, _, after in moves]
    assert moved == [True, True, False] * BATCHES
    # Without hooks it cannot be told: `global_step` counts skipped steps too.
    count = 8 if make is SGD else 12
    assert trainer.global_step == 12
    assert callbacks[0].trajectory.steps.tolist() == list(range(count + 1))
    assert (FOLLOWS in caplog.text) == (make is not SGD)
    updates = [vector(after) - vector(before) for before, _, after in moves]
    lengths = [np.linalg.norm(u) for u, real in zip(updates, moved, strict=True) if real or make is not SGD]
    recorded = np.sqrt(np.diagonal(callbacks[1].trajectory.gram("*")))
    np.testing.assert_allclose(recorded, lengths, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("make", [SGD, lambda parameters: Lookahead(SGD(parameters))])
def test_accumulation_is_no_missing_hook(fit: Any, make: Any) -> None:
    callback = TrajectoryCallback(schedule=EveryNSteps(1))
    fit(callback, module=lambda: Stepping(make), accumulate_grad_batches=2)
    assert callback.trajectory.steps.tolist() == list(range(7))


def test_a_step_that_the_module_leaves_out_is_no_missing_hook(fit: Any, caplog: Any) -> None:
    class Late(Stepping):
        """Takes no step at first: `global_step` goes on all the same."""

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if epoch:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()

    callback = TrajectoryCallback(schedule=EveryNSteps(1))
    with caplog.at_level(logging.INFO):
        trainer = fit(callback, module=lambda: Late(SGD))
    assert trainer.global_step == 12
    assert callback.trajectory.steps.tolist() == list(range(9))
    assert FOLLOWS not in caplog.text


def test_optimizers_of_both_kinds_side_by_side(fit: Any, caplog: Any) -> None:
    class Both(TwoOptimizers):
        def configure_optimizers(self) -> Any:
            plain, wrapped = super().configure_optimizers()
            return [plain, Lookahead(wrapped)]

    callbacks = [TrajectoryCallback(track=track, schedule=EveryNSteps(1)) for track in ("weights", "gradient")]
    with caplog.at_level(logging.INFO):
        fit(*callbacks, module=Both)
    assert callbacks[0].trajectory.steps.tolist() == list(range(25))
    assert callbacks[1].trajectory.steps.tolist() == list(range(1, 25))
    assert "step hooks of Lookahead do not fire" in caplog.text


def test_several_steps_that_are_noticed_at_once_are_counted_and_told(fit: Any) -> None:
    tracks = ("weights", "gradient", "update")
    callbacks = [TrajectoryCallback(track=track, schedule=AtSteps([3, 6, 9]), name=track) for track in tracks]
    hybrid = HybridTraining(train="net.2.*", when=AtSteps([5]))
    with pytest.warns(UserWarning, match="2 optimizer steps were noticed at once"):
        trainer = fit(*callbacks, hybrid, module=lambda: Manual(lambda ps: Deaf(SGD(ps))), max_epochs=2)
    weights, gradient, update = (callback.trajectory for callback in callbacks)
    assert weights.steps.tolist() == [0, 4, 6, 10]  # as soon as each due step is noticed
    assert gradient.steps.tolist() == update.steps.tolist() == [2, 4, 6, 10]
    assert [event.step for event in hybrid.timeline.events] == [6]
    assert weights.windows.steps == ()
    moves = trainer.lightning_module.moves
    both = np.stack([vector(moves[i + 1][2]) - vector(moves[i][0]) for i in (0, 2, 4, 8)])
    np.testing.assert_allclose(update.gram("*"), both @ both.T, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second run writes no checkpoints
def test_a_resumed_run_goes_on_counting(fit: Any, tmp_path: Any) -> None:
    def module() -> Stepping:
        return Stepping(lambda parameters: Lookahead(SGD(parameters)))

    def callbacks() -> list[pl.Callback]:
        return [TrajectoryCallback(schedule=EveryNSteps(1)), HybridTraining(train="net.2.*", when=AtSteps([10]))]

    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(*callbacks(), saving, module=module)
    trajectory, hybrid = callbacks()
    fit(trajectory, hybrid, module=module, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert trajectory.trajectory.steps.tolist() == list(range(13))
    assert [event.step for event in hybrid.timeline.events] == [10]


# The counter alone ----------------------------------------------------------------------------------------------


@pytest.fixture
def counted() -> Any:
    """A counter on an optimizer, and what it reports."""

    def make(kind: Callable[..., Any] = SGD) -> tuple[StepCounter, Any, list[Any]]:
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.ones(2)
        optimizer, reports, counter = kind([parameter]), [], StepCounter()
        counter.start(
            [optimizer],
            0,
            say=lambda line: reports.append(line),
            before=lambda optimizer, look: reports.append(("before", float(parameter[0].detach()), look)),
            after=lambda optimizer, number: reports.append(("after", number)),
        )
        return counter, optimizer, reports

    return make


def test_a_step_is_reported_once_before_and_once_after(counted: Any) -> None:
    counter, optimizer, reports = counted()
    optimizer.step()
    optimizer.step(lambda: torch.tensor(1.0))
    optimizer.step(closure=lambda: torch.tensor(1.0))
    assert [report[0] for report in reports] == ["before", "after"] * 3
    assert counter.count == 3


def test_parameters_are_looked_at_before_and_after_what_a_loop_does_at_an_announcement(counted: Any) -> None:
    counter, optimizer, reports = counted()
    (parameter,) = optimizer.param_groups[0]["params"]

    def closure() -> None:
        counter.announce(optimizer, [optimizer], counter.count)
        parameter.data.add_(1)

    optimizer.step(closure)
    counter.announce(optimizer, [optimizer], counter.count)  # the closure is evaluated ahead of the step
    optimizer.step()
    looks = [report for report in reports if report[0] == "before"]
    assert [look for *_, look in looks] == [Look(True, False), Look(False, True), Look(True, True), Look(False, True)]
    assert looks[1][1] == looks[0][1] + 1


def test_the_result_of_a_closure_is_handed_on(counted: Any) -> None:
    _, optimizer, _ = counted()
    assert optimizer.step(lambda: 5) == 5
    assert optimizer.step(closure=lambda: 5) == 5


def test_a_step_that_calls_its_parents_is_one_step(counted: Any) -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # its own step fires hooks from now on, too
    counter, optimizer, reports = counted(partial(Sam, lr=0.1))
    evaluations: list[int] = []
    optimizer.step(lambda: evaluations.append(1))
    assert len(evaluations) == 2
    assert reports == [("before", 1.0, Look()), ("after", 1)]  # where it began, not where it climbed to
    assert counter.count == 1


def test_a_step_that_fails_is_not_counted_and_the_next_one_is(counted: Any) -> None:
    counter, optimizer, _ = counted()

    def fails() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(fails)
    assert counter.count == 0
    counter.batch_starts([optimizer])
    optimizer.step()
    assert counter.count == 1


def test_it_is_pickled_and_copied_without_what_belongs_to_the_process(counted: Any) -> None:
    counter, optimizer, _ = counted()
    optimizer.step()
    for twin in (pickle.loads(pickle.dumps(counter)), copy.deepcopy(counter)):
        assert twin.count == 1
        optimizer.step()
        assert twin.count == 1
    counter.stop()
    optimizer.step()
    assert counter.count == 3
    assert pickle.loads(pickle.dumps(TrajectoryCallback()._counter)).count == 0


def test_what_is_inside_of_wrappers_is_found() -> None:
    inner = SGD([nn.Parameter(torch.ones(1))])
    middle = Bare(inner)
    outer = Lookahead(middle)
    middle.outer = outer  # and around again
    assert [id(each) for each in with_inner(outer)] == [id(outer), id(middle), id(inner)]
    assert [runs_hooks(each) for each in with_inner(outer)] == [False, False, True]


def test_modules_without_optimizers_are_left_alone(fit: Any) -> None:
    class Idle(Module):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.loss(batch)

        def configure_optimizers(self) -> Any:
            return []

    callback = TrajectoryCallback()
    fit(callback, module=Idle, data=batches(), max_epochs=1)
    assert callback.trajectory.steps.tolist() == [0, 0]
