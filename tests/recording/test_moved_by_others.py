"""Parameters that no optimizer trains and that move all the same: momentum teachers, target networks, and the like."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_traj import EveryNSteps, TrajectoryCallback
from models import Module, Witness

Move = Callable[[list[nn.Parameter], list[nn.Parameter]], None]


def by_data(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    for t, s in zip(teachers, students, strict=True):
        t.data.mul_(0.9).add_(s.data, alpha=0.1)


def by_foreach(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    data = [t.data for t in teachers]
    torch._foreach_mul_(data, 0.9)
    torch._foreach_add_(data, [s.data for s in students], alpha=0.1)


def by_numpy(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    for t, s in zip(teachers, students, strict=True):
        view = t.detach().numpy()
        view *= 0.9
        view += 0.1 * s.detach().numpy()


def by_lerp(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for t, s in zip(teachers, students, strict=True):
            t.lerp_(s, 0.1)


def by_vector(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    with torch.no_grad():
        vector_to_parameters(0.9 * parameters_to_vector(teachers) + 0.1 * parameters_to_vector(students), teachers)


def by_new_data(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    for t, s in zip(teachers, students, strict=True):
        t.data = 0.9 * t.data + 0.1 * s.data


def as_target_network(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    for t, s in zip(teachers, students, strict=True):
        t.data.copy_(s.data)


def by_a_fused_optimizer(teachers: list[nn.Parameter], students: list[nn.Parameter]) -> None:
    """They require gradients during its step alone."""
    for t, s in zip(teachers, students, strict=True):
        t.requires_grad_(True)
        t.grad = (t - s).detach()
    torch.optim.SGD(teachers, lr=0.1, fused=True).step()
    for t in teachers:
        t.requires_grad_(False)
        t.grad = None


MOVES: list[Move] = [by_data, by_foreach, by_numpy, by_lerp, by_vector, by_new_data, as_target_network]
MOVES.append(by_a_fused_optimizer)


def taught(move: Move) -> Callable[[], Module]:
    class Taught(Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)

        def on_train_batch_end(self, *_: Any) -> None:
            move([*self.teacher.parameters()], [*self.net.parameters()])

    return Taught


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("move", MOVES)
def test_parameters_that_move_are_recorded_as_moving(fit: Any, move: Move, snapshot: Any) -> None:
    callback, witness = TrajectoryCallback(snapshot=snapshot), Witness()
    fit(callback, witness, module=taught(move))
    first, last = (
        torch.cat([v for name, v in witness.snapshots[i].items() if name.startswith("teacher.")]) for i in (0, -1)
    )
    expected = float((last - first).norm())
    assert expected > 0.01
    trajectory = callback.trajectory
    assert trajectory.summary("layer:teacher")["displacement"] == pytest.approx(expected, rel=1e-5)
    assert trajectory.summary("layer:net")["displacement"] > 0
    np.testing.assert_allclose(trajectory.gram("*"), witness.gram(), rtol=1e-5)


@pytest.mark.parametrize("move", [by_data, by_numpy])
def test_moves_of_others_are_no_steps(fit: Any, move: Move) -> None:
    """Also where they leave no mark on a tensor: the optimizer never moves the teacher."""

    class Moving(taught(move)):  # type: ignore[misc]
        def on_after_backward(self) -> None:  # between two steps
            move([*self.teacher.parameters()], [*self.net.parameters()])

        def on_train_batch_end(self, *_: Any) -> None:
            pass

    callback = TrajectoryCallback(window=4)
    fit(callback, module=Moving)
    windows, names = callback.trajectory.windows, [block.name for block in callback.trajectory.blocks]
    assert windows.counts == (4, 4, 4)
    teachers = [i for i, name in enumerate(names) if name.startswith("teacher.")]
    assert (windows.sums[:, teachers] == 0).all()
    assert (windows.sums[:, [i for i in range(len(names)) if i not in teachers], 0].sum(axis=1) > 0).all()
    assert callback.trajectory.summary("layer:teacher")["displacement"] > 0


@pytest.mark.parametrize("in_place", ["data", "foreach"])
def test_weights_that_are_scaled_after_each_step_have_the_steps_of_the_optimizer(fit: Any, in_place: str) -> None:
    lengths: list[float] = []

    class Scaled(Module):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.before = parameters_to_vector(self.net.parameters()).detach().double().clone()

        def on_train_batch_end(self, *_: Any) -> None:
            after = parameters_to_vector(self.net.parameters()).detach().double()
            lengths.append(float((after - self.before).norm()))
            data = [p.data for p in self.net.parameters()]
            torch._foreach_mul_(data, 0.5) if in_place == "foreach" else [d.mul_(0.5) for d in data]

    callback = TrajectoryCallback(window=4)
    fit(callback, module=Scaled, max_epochs=1)
    found = callback.trajectory.summary()["oscillation_step_length"]
    assert found == pytest.approx(np.mean(lengths), rel=1e-6)


def test_each_step_of_a_teacher_is_recorded(fit: Any) -> None:
    callback = TrajectoryCallback(schedule=EveryNSteps(1), window=0)
    fit(callback, module=taught(by_data))
    teacher = callback.trajectory.series("layer:teacher", names=["update_length"])["update_length"]
    # It is behind by a step: at the first one it has yet to move.
    assert (teacher[2:] > 0).all()
