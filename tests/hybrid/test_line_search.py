"""A step along the recent direction: taken where it lowers the loss, and otherwise as if nothing had been."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_traj import HybridTraining, LineSearch, TrajectoryCallback
from lightning_traj.hybrid.line_search import DirectionSearch, Probe, describe, summary
from models import BATCHES, Validated, batches, mlp


class Bowl(nn.Module):
    """Its loss is |θ|²; with ``hole``, undefined beyond it."""

    def __init__(self, hole: float = np.inf) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([4.0, 0.0])), nn.Parameter(torch.tensor([2.0]))
        self.hole = hole

    def training_step(self, batch: Any) -> Tensor:
        square = self.a.square().sum() + self.b.square().sum()
        return square * batch if square > self.hole else square * np.nan


def searched(module: nn.Module, earlier: dict[str, Tensor], groups: Any, **settings: Any) -> Any:
    search = DirectionSearch(LineSearch(**settings))
    search.keep(torch.tensor(1.0), "train")
    search.earlier = earlier
    probe = Probe(module, search.batches, search.settings, nullcontext, lambda losses: losses)
    return search.search(probe, groups, dict(module.named_parameters()))


def test_the_best_factor_is_taken() -> None:
    module = Bowl(hole=-1)
    earlier = {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([1.0])}  # a moved by −1, b by 1
    found = searched(module, earlier, {"model": ("a", "b")}, factors=[0.5, 1, 4])["model"]
    # (4 − a)² + (2 + a)² is least at a = 1
    assert (found.factor, found.before, found.after) == (1.0, 20.0, 18.0)
    assert module.a.tolist() == [3.0, 0.0]
    assert module.b.tolist() == [3.0]


def test_groups_are_searched_one_after_the_other() -> None:
    module = Bowl(hole=-1)
    earlier = {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([1.0])}
    found = searched(module, earlier, {"first": ("a",), "second": ("b",)}, factors=[0.5, 1, 4, -2])
    assert (found["first"].factor, found["first"].after) == (4.0, 4.0)
    assert (found["second"].factor, found["second"].before, found["second"].after) == (-2.0, 4.0, 0.0)
    assert [module.a.tolist(), module.b.tolist()] == [[0.0, 0.0], [0.0]]
    assert describe(found) == "by -2 or 4: loss 20 to 0"
    assert summary(found) == {"taken": 1.0, "gain": 20.0}


def test_an_undefined_loss_is_not_lower() -> None:
    module = Bowl(hole=19)
    found = searched(module, {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([1.0])}, {"model": ("a", "b")})
    assert found["model"].factor == 0
    assert module.a.tolist() == [4.0, 0.0]


def test_frozen_parameters_are_left_alone() -> None:
    module = Bowl(hole=-1)
    module.a.requires_grad_(False)
    found = searched(module, {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([3.0])}, {"x": ("a",), "y": ("b",)})
    assert list(found) == ["y"]
    assert module.a.tolist() == [4.0, 0.0]


class Noisy(Validated):
    """Everything that a loss may disturb: random numbers of three kinds, running statistics, metrics, modes."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8), nn.Dropout(0.3)))
        self.mean = MeanMetric()
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        loss = super().training_step(batch, batch_idx) * (1 + random.random() + np.random.rand())  # noqa: NPY002
        self.mean(loss)
        self.log("train/loss", loss)
        return {"loss": loss}


def outcome(trainer: Any) -> dict[str, Any]:
    module = trainer.lightning_module
    return {
        "state": module.state_dict(),
        "losses": module.losses,
        "modes": [part.training for part in module.modules()],
        "metric": module.mean.compute(),
        "calls": module.calls,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": torch.tensor(random.getstate()[1]),
    }


@pytest.mark.parametrize("data", ["train", "val"])
def test_what_is_not_taken_leaves_no_trace(fit: Any, data: Any) -> None:
    away = LineSearch(factors=[1e6, -1e6], data=data)
    tried = HybridTraining(line_search=away)
    arguments = {"module": Noisy, "data": batches(shuffle=True), "max_epochs": 4}
    torch.testing.assert_close(outcome(fit(tried, **arguments)), outcome(fit(**arguments)), rtol=0, atol=0)
    assert tried.timeline.events == []


class ByPosition(Validated):
    def training_step(self, batch: Any, _: int) -> Any:
        return self.loss(batch)


class WithoutIndex(Validated):
    def training_step(self, batch: Any) -> Any:
        return self.loss(batch)


class Anything(Validated):
    def training_step(self, *args: Any) -> Any:
        batch, index = args
        assert isinstance(index, int)
        return self.loss(batch)


class Swapped(Validated):
    """Lightning passes the index whenever one of the arguments is called so."""

    def training_step(self, batch: Any, batch_idx: int, more: Any = None) -> Any:
        assert isinstance(batch_idx, int)
        return self.loss(batch)


def decorated(step: Any) -> Any:
    @functools.wraps(step)
    def wrapper(self: Any, *args: Any) -> Any:
        return step(self, *args)

    return wrapper


class Decorated(Validated):
    @decorated
    def training_step(self, batch: Any, i: int) -> Any:
        return self.loss(batch)


@pytest.mark.parametrize("module", [ByPosition, WithoutIndex, Anything, Swapped, Decorated])
def test_training_steps_of_every_signature(fit: Any, module: Any) -> None:
    """Searches as Validated does, whose training_step names its index as usual."""
    events = []
    for kind in (module, Validated):
        hybrid = HybridTraining(train="bias", line_search=LineSearch(factors=[0.5, 1.0], batches=1))
        fit(hybrid, module=kind, max_epochs=4)
        events.append([str(event) for event in hybrid.timeline.events])
    assert events[0] == events[1] != []


class Iterating(Validated):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize("settings", [{}, {"data": "val"}, {"loss": lambda module, batch: module.loss(batch)}])
def test_steps_that_take_their_batches_themselves(fit: Any, settings: Any) -> None:
    module = Iterating()
    with pytest.raises(ValueError, match="line_search: training_step takes its batches from dataloader_iter itself"):
        fit(HybridTraining(train="bias", line_search=LineSearch(**settings)), module=lambda: module)
    assert not module.losses
    by_validation = LineSearch(data="val", loss=loss_of, batches=1)
    fit(HybridTraining(train="bias", line_search=by_validation), module=Iterating, max_epochs=1)


def loss_of(module: Any, batch: Any) -> Tensor:
    return module.loss(batch)


@pytest.mark.parametrize("loss", [None, loss_of], ids=["training_step", "a function"])
def test_steps_in_a_run_are_those_of_the_definition(fit: Any, loss: Callable[..., Tensor] | None) -> None:
    """Trained by hand, with the search written out."""
    factors = (0.5, 1.0, 2.0)
    hybrid = HybridTraining(train="layer:net.0", line_search=LineSearch(factors=factors, batches=2, every=2, loss=loss))
    trainer = fit(hybrid, module=lambda: Validated(mlp()), max_epochs=6)
    torch.manual_seed(0)
    module = Validated(mlp())
    optimizer = module.configure_optimizers()
    kept, taken = list(batches())[:2], []

    def mean_loss(theta: list[Tensor]) -> float:
        with torch.no_grad():
            for p, value in zip(module.parameters(), theta, strict=True):
                p.copy_(value)
            return float(torch.stack([module.loss(batch) for batch in kept]).mean())

    def current() -> list[Tensor]:
        return [p.detach().clone() for p in module.parameters()]

    earlier = current()
    for epoch in range(6):
        if epoch in (2, 4):
            theta = current()
            tried = {a: [p + a * (p - q) for p, q in zip(theta, earlier, strict=True)] for a in (0.0, *factors)}
            losses = {a: mean_loss(values) for a, values in tried.items()}
            best = min(losses, key=losses.__getitem__)
            taken += [(epoch, best)] if best else []
            mean_loss(tried[best])
            earlier = current()
        for batch in batches():
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
    assert [(event.epoch, float(event.why.split()[1].rstrip(":"))) for event in hybrid.timeline.events] == taken
    assert taken
    for ours, expected in zip(trainer.lightning_module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


def test_a_move_is_no_step_of_a_window(fit: Any) -> None:
    """Windows of an epoch each: their steps are as long as those that the optimizer has taken."""
    steps: list[float] = []

    class Lengths(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.before = [p.detach().clone() for p in module.parameters()]

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            moves = [(p.detach() - q).flatten() for p, q in zip(module.parameters(), self.before, strict=True)]
            steps.append(float(torch.cat(moves).norm()))

    recording = TrajectoryCallback(snapshot="full", window=BATCHES)
    hybrid = HybridTraining(train="bias", line_search=LineSearch(factors=[4.0]))
    fit(hybrid, recording, Lengths(), module=lambda: Validated(mlp()), max_epochs=4)
    assert hybrid.timeline.events
    expected = [sum(steps[at : at + BATCHES]) / BATCHES for at in range(0, len(steps), BATCHES)]
    measured = recording.trajectory.series(names=["oscillation_step_length"])["oscillation_step_length"]
    np.testing.assert_allclose(measured[1:], expected, rtol=1e-4)


def test_batches_are_kept_as_they_were() -> None:
    search = DirectionSearch(LineSearch(batches=2))
    x = torch.zeros(3)
    assert [
        search.keep(batch, data) for batch, data in (([x, 1], "val"), ([x, 1], "train"), ([x + 1, 2], "train"))
    ] == [
        False,
        True,
        False,
    ]
    x += 5
    search.keep([x, 3], "train")
    assert [(batch[0].tolist(), batch[1]) for batch in search.batches] == [([0.0] * 3, 1), ([1.0] * 3, 2)]
    assert len(search.state_dict()["batches"]) == 2
    search.batches[0] = [nn.Linear(1, 1)]  # no checkpoint without pickle can hold it
    assert len(search.state_dict()["batches"]) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"factors": []}, "numbers other than 0"),
        ({"factors": [1, 0]}, "numbers other than 0"),
        ({"factors": 2.0}, "numbers other than 0"),
        ({"factors": "2"}, "numbers other than 0"),
        ({"batches": 0}, "batches=0"),
        ({"every": 1.5}, "every=1.5"),
        ({"data": "test"}, "'train' or 'val'"),
        ({"loss": 3}, "a function from module and batch"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        LineSearch(**settings)


def test_training_steps_without_a_loss_are_refused(fit: Any) -> None:
    class Quiet(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.raises(ValueError, match=r"training_step returned None and no loss: pass LineSearch\(loss=…\)"):
        fit(HybridTraining(train="bias", line_search=LineSearch()), module=Quiet)
    assert BATCHES > 1
