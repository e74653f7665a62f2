"""Parameters that are renamed midway: their groups go on under their first names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_traj import HybridTraining, LineSearch, Threshold, TrajectoryCallback
from models import Module

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"),
]
FORMS = {
    "pruned": (lambda layer: prune.identity(layer, "weight"), "net.0.weight_orig"),
    "parametrized": (
        lambda layer: parametrize.register_parametrization(layer, "weight", torch.nn.Identity()),
        "net.0.parametrizations.weight.original",
    ),
    "orthogonal": (parametrizations.orthogonal, "net.0.parametrizations.weight.original"),
}


class Changing(Module):
    """Its first layer takes another form before the epoch of that number, or has it from the start."""

    def __init__(self, change: Any, epoch: int = 1) -> None:
        super().__init__()
        self.change, self.epoch = change, epoch
        if epoch == 0:
            change(self.net[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # no state, whose order would be that of the parameters

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.epoch > 0:
            self.change(self.net[0])


def settings(**more: Any) -> dict[str, Any]:
    return {"train": "net.2.*", **more}


def events(hybrid: HybridTraining) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(event.epoch, event.what, event.groups) for event in hybrid.timeline.events]


@pytest.fixture(params=FORMS)
def form(request: Any) -> Any:
    return FORMS[request.param]


def test_a_frozen_group_stays_frozen_in_the_new_form(fit: Any, tmp_path: Path, form: Any) -> None:
    change, renamed = form
    first = HybridTraining(**settings(when=1))
    trainer = fit(first, module=lambda: Changing(change), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"][first.state_key]
    assert saved["frozen"] == {"model": ["net.0.weight", "net.0.bias"]}
    assert saved["aliases"] == {renamed: "net.0.weight"}
    resumed = HybridTraining(**settings(when=1, thaw=4))
    kept = {}

    class Watching(Changing):
        def on_train_batch_start(self, *_: Any) -> None:
            kept[self.current_epoch] = dict(self.named_parameters())[renamed].detach().clone()

    fit(resumed, module=lambda: Watching(change, epoch=0), max_epochs=6, ckpt_path=tmp_path / "saved.ckpt")
    assert events(resumed) == [(1, "frozen", ("model",)), (4, "thawed", ("model",))]
    torch.testing.assert_close(kept[3], kept[2], rtol=0, atol=0)
    assert not torch.equal(kept[5], kept[4])


@pytest.mark.parametrize("by", ["model", "layer"])
def test_a_condition_finds_the_trajectory_of_the_renamed(fit: Any, tmp_path: Path, form: Any, by: Any) -> None:
    change, _ = form
    never = Threshold("displacement", above=1e9)
    ours = TrajectoryCallback(), HybridTraining(**settings(when=never, by=by))
    trainer = fit(*ours, module=lambda: Changing(change), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    soon = HybridTraining(**settings(when=Threshold("displacement", above=0), by=by))
    recording = TrajectoryCallback()
    fit(recording, soon, module=lambda: Changing(change, epoch=0), max_epochs=4, ckpt_path=tmp_path / "saved.ckpt")
    group = "model" if by == "model" else "net.0"
    assert events(soon) == [(2, "frozen", (group,))]
    lengths = recording.trajectory.series("net.0.*")["path_length"]
    assert lengths[1] < lengths[2] == lengths[4]


def test_a_line_search_follows_the_renamed(fit: Any, tmp_path: Path) -> None:
    change, renamed = FORMS["pruned"]
    searching = LineSearch(factors=[0.01], batches=1)
    first = HybridTraining(**settings(line_search=searching))
    trainer = fit(first, module=lambda: Changing(change), max_epochs=3)
    assert [event.epoch for event in first.timeline.events] == [1, 2]  # the second one in the new form
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    resumed = HybridTraining(**settings(line_search=searching))
    fit(resumed, module=lambda: Changing(change, epoch=0), max_epochs=4, ckpt_path=tmp_path / "saved.ckpt")
    assert [event.epoch for event in resumed.timeline.events] == [1, 2, 3]
    assert set(resumed._search.earlier) == {f"net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}  # type: ignore[union-attr]
    assert renamed not in resumed._search.earlier  # type: ignore[union-attr]


def test_a_parameter_that_is_replaced_is_frozen_as_the_one_that_it_continues(fit: Any) -> None:
    """Weight normalisation makes a new object of the memory of the weight."""
    seen = {}

    class Watching(Changing):
        def on_train_batch_start(self, *_: Any) -> None:
            if self.current_epoch >= 2:
                seen[self.current_epoch] = self.net[0].weight_v.requires_grad

    hybrid = HybridTraining(**settings(when=2, thaw=3))
    fit(hybrid, module=lambda: Watching(lambda layer: torch.nn.utils.weight_norm(layer)), max_epochs=4)
    assert seen == {2: False, 3: True}


def test_a_checkpoint_without_names_goes_on(fit: Any, tmp_path: Path) -> None:
    trainer = fit(HybridTraining(**settings(when=1)), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    (state,) = (state for key, state in saved["callbacks"].items() if key.startswith("HybridTraining"))
    assert state.pop("aliases") == {}
    torch.save(saved, tmp_path / "older.ckpt")
    resumed = HybridTraining(**settings(when=1))
    fit(resumed, ckpt_path=tmp_path / "older.ckpt")
    assert resumed.frozen == ("model",)
