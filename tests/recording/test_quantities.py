"""Quantities in a plain training loop: they know modules and optimizers, and no Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_traj.recording import StepCounter, Training
from lightning_traj.recording.quantities.registry import QUANTITIES, quantity
from models import mlp

STEPS = 3
Values = dict[str, Tensor]


def values(tensors: Any) -> Values:
    return {name: tensor.detach().double().clone() for name, tensor in tensors}


def moments(net: nn.Module, optimizer: Any, state: str) -> Values:
    return values((name, optimizer.state[p][state]) for name, p in net.named_parameters())


# Of each quantity: its values by the parameters before a step, the gradients, and the net, optimizer and average after.
EXPECTED: dict[str, Callable[..., Values]] = {
    "weights": lambda before, gradients, net, *_: values(net.named_parameters()),
    "average": lambda before, gradients, net, optimizer, average: values(average.named_parameters()),
    "gradient": lambda before, gradients, *_: gradients,
    "update": lambda before, gradients, net, *_: {
        name: p.detach().double() - before[name] for name, p in net.named_parameters()
    },
    "first_moment": lambda before, gradients, net, optimizer, average: moments(net, optimizer, "exp_avg"),
    "second_moment": lambda before, gradients, net, optimizer, average: moments(net, optimizer, "exp_avg_sq"),
}


def test_every_quantity_is_tested() -> None:
    assert set(EXPECTED) == set(QUANTITIES)


@pytest.mark.parametrize("within", [True, False], ids=["average within", "average apart"])
@pytest.mark.parametrize("track", QUANTITIES)
def test_a_plain_training_loop(track: str, within: bool) -> None:
    torch.manual_seed(0)
    net = mlp()
    module = nn.ModuleDict({"net": net})
    average = AveragedModel(net if within else module)
    if within:
        module["average"] = average
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    training = Training(module, [optimizer], None if within else average)
    seen, counter = quantity(track), StepCounter()
    seen.check(training)
    seen.begin(module)
    counter.start(
        [optimizer],
        0,
        say=lambda line: None,
        before=lambda optimizer, look: seen.before_step(module, optimizer, look.has_gradients),
        after=lambda optimizer, number: seen.after_step(module, optimizer),
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().mean().backward()
        before = values(net.named_parameters())
        gradients = values((name, p.grad) for name, p in net.named_parameters())
        optimizer.step()
        average.update_parameters(net if within else module)
        averaged = average.module if within else average.module["net"]
        expected = EXPECTED[track](before, gradients, net, optimizer, averaged)
        found = {name: tensor.double() for name, tensor in seen.read(training).items() if name.startswith("net.")}
        assert found.keys() == {f"net.{name}" for name in expected}
        for name, tensor in expected.items():
            torch.testing.assert_close(found[f"net.{name}"], tensor, rtol=0, atol=0)
    assert counter.count == STEPS


def test_an_average_is_missed() -> None:
    with pytest.raises(ValueError, match='track="average": there is no WeightAveraging'):
        quantity("average").check(Training(mlp()))
