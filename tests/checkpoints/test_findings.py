"""What is wrong with checkpoints is found, and is not found where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_traj import from_checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"emb.weight": (8, 4), "h.0.weight": (4, 4), "h.1.weight": (4, 4), "h.1.bias": (4,), "head.weight": (8, 4)}
Snapshots = list[dict[str, torch.Tensor]]


@pytest.fixture
def found(walk: Callable[..., Snapshots], tmp_path: Path) -> Callable[..., list[str]]:
    """Findings in a walk that something has been done to."""

    def find(
        change: Callable[[Snapshots], Any] = lambda _: None,
        steps: Any = range(0, 60, 10),
        names: dict[int, str] | None = None,
        **arguments: Any,
    ) -> list[str]:
        steps = list(steps)
        snapshots = walk(SHAPES, len(steps))
        change(snapshots)
        for i, (step, snapshot) in enumerate(zip(steps, snapshots, strict=True)):
            torch.save(snapshot, tmp_path / (names or {}).get(i, f"step{step}.pt"))
        result: list[str] = from_checkpoints(tmp_path, **arguments).settings["findings"]
        return result

    return find


def test_nothing(found: Any) -> None:
    assert found() == []


@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_exact_duplicates(found: Any, snapshot: str) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[4] = {name: tensor.clone() for name, tensor in snapshots[1].items()}
        snapshots[5] = snapshots[1]

    assert found(change, snapshot=snapshot, sketch_dim=4) == [
        "step10.pt, step40.pt and step50.pt hold exactly the same weights."
    ]


def test_two_groups_of_duplicates(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[3], snapshots[5] = snapshots[0], snapshots[2]

    said = found(change)
    assert "step0.pt and step30.pt hold exactly the same weights." in said
    assert "step20.pt and step50.pt hold exactly the same weights." in said


def test_what_differs_in_one_bit_is_no_duplicate(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[4] = {name: tensor.clone() for name, tensor in snapshots[1].items()}
        weight = snapshots[4]["h.1.bias"]
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))

    assert not any("same weights" in sentence for sentence in found(change))


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ([0, 10, 20, 40, 50, 60], ["20 and 40"]),
        ([0, 10, 30, 40, 50, 80], ["10 and 30", "50 and 80"]),
        ([0, 1, 2, 4, 8, 16, 32, 64], []),
        ([0, 1, 2, 4, 8, 16, 100, 200, 300, 400, 500, 600, 700, 800, 900], []),  # log-spaced first, as Pythia's
        ([0, 10, 20, 30, 37], []),
        ([0, 7, 9, 40], []),
    ],
)
def test_missing_steps(found: Any, steps: list[int], gaps: list[str]) -> None:
    said = found(steps=steps)
    assert [s.partition(",")[0] for s in said] == [f"no checkpoint between step {gap}" for gap in gaps]


def test_missing_epochs(found: Any) -> None:
    said = found(names={i: f"epoch={epoch}.pt" for i, epoch in enumerate((0, 1, 2, 4, 5, 6))})
    assert said == [
        "steps are not known, epochs are: these are counted as steps.",
        "the first checkpoint is of epoch 0: what is called θ_0 here may not be initialisation; displacement, relative "
        "maps, turn and saturation are from epoch 0 on (save one before the first step).",
        "no checkpoint between epoch 2 and 4, where others are 1 epoch apart.",
    ]


def test_a_first_checkpoint_that_is_not_initialisation(found: Any) -> None:
    (said,) = found(steps=range(2000, 2600, 100))
    assert said == (
        "the first checkpoint is of step 2,000: what is called θ_0 here is not initialisation; displacement, relative "
        "maps, turn and saturation are from step 2,000 on (save one before the first step)."
    )


def test_in_an_order_that_is_not_of_time_nothing_is_said_of_gaps(found: Any) -> None:
    names = {i: f"{i}-step{step}.pt" for i, step in enumerate((40, 20, 10, 0, 80, 90))}
    assert len(found(names=names, order="given")) == 2  # counted as given, and not in the order of time


@pytest.mark.parametrize(
    ("name", "is_average"),
    [("step20-ema.pt", True), ("swa_step20.pt", True), ("step20.averaged.pt", True), ("schema-step20.pt", False)],
)
def test_averages_among_raw_weights(found: Any, name: str, is_average: bool) -> None:
    said = found(names={2: name})
    assert said == (
        [f"{name} is averaged weights among raw ones: angles to and from them say nothing of training."]
        if is_average
        else []
    )


def test_averages_alone(found: Any) -> None:
    assert found(names={i: f"ema-step{i}.pt" for i in range(6)}) == []


def test_averages_that_the_file_tells(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[3]["n_averaged"] = torch.tensor(7)

    assert found(change)[0].startswith("step30.pt is averaged weights")


def test_a_changed_vocabulary(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for snapshot in snapshots[3:]:
            snapshot["emb.weight"] = torch.cat([snapshot["emb.weight"], torch.ones(2, 4)])

    assert found(change) == [
        "emb.weight changes its shape, and is left out: [8, 4] (step0.pt) and [10, 4] (step30.pt)."
    ]


def test_mixed_precisions(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for snapshot in snapshots[4:]:
            for name in snapshot:
                snapshot[name] = snapshot[name].bfloat16()

    (said,) = found(change)
    assert said.startswith("precisions are mixed: float32 in step0.pt, step10.pt, step20.pt and step30.pt; bfloat16 in")


def test_precisions_mixed_alike_in_all(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for snapshot in snapshots:
            snapshot["h.1.bias"] = snapshot["h.1.bias"].double()

    assert found(change) == []


def tie(snapshots: Snapshots) -> None:
    for snapshot in snapshots:
        snapshot["head.weight"] = snapshot["emb.weight"].clone()


def test_a_tied_head(found: Any) -> None:
    assert found(tie) == ["head.weight and emb.weight are one parameter, saved twice: counted once."]


def test_a_tied_head_that_shares_its_memory(found: Any, tmp_path: Path) -> None:
    def change(snapshots: Snapshots) -> None:
        for snapshot in snapshots:
            snapshot["head.weight"] = snapshot["emb.weight"]

    assert found(change) == ["head.weight and emb.weight are one parameter, saved twice: counted once."]
    assert len(from_checkpoints(tmp_path).blocks) == 4


@pytest.mark.parametrize("at", [0, 3, 5])
def test_heads_that_were_alike_but_once_are_not_tied(found: Any, at: int) -> None:
    def change(snapshots: Snapshots) -> None:
        tie(snapshots)
        snapshots[at]["head.weight"][-1, -1] += 1

    assert not any("saved twice" in sentence for sentence in found(change))


def test_equal_zeros_are_not_tied(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for snapshot in snapshots:
            for name in ("h.0.weight", "h.1.weight"):
                snapshot[name] = torch.zeros(4, 4)

    assert found(change) == []


@pytest.mark.parametrize("bad", [0, 3, 5])
def test_a_tied_head_with_non_finite_entries(found: Any, bad: int) -> None:
    def change(snapshots: Snapshots) -> None:
        tie(snapshots)
        for name in ("emb.weight", "head.weight"):
            snapshots[bad][name].fill_(torch.nan) if bad != 5 else snapshots[bad][name][0].fill_(torch.nan)

    said = found(change)
    assert said[0] == "head.weight and emb.weight are one parameter, saved twice: counted once."
    assert said[1] == f"step{10 * bad}.pt has non-finite entries, and is left out."


def test_off_the_path(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for name, tensor in snapshots[3].items():
            snapshots[3][name] = tensor + 3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))

    (said,) = found(change)
    assert said.startswith("step30.pt lies off the path: it is ")


@pytest.mark.parametrize(("at", "which"), [(0, "first"), (5, "last")])
@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_ends_off_the_path(found: Any, at: int, which: str, snapshot: str) -> None:
    def change(snapshots: Snapshots) -> None:
        for name, tensor in snapshots[at].items():
            snapshots[at][name] = tensor + 3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))

    (said,) = found(change, snapshot=snapshot)
    assert said.startswith(f"step{10 * at}.pt, the {which} checkpoint, lies off the path: it is ")


def test_how_far_the_last_is_off_the_path(found: Any, tmp_path: Path, stacked: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        for tensor in snapshots[5].values():
            tensor += 2

    (said,) = found(change)
    thetas = stacked([torch.load(tmp_path / f"step{step}.pt") for step in range(0, 60, 10)])
    distances = np.linalg.norm(thetas[:, None] - thetas[None], axis=2)
    ratio = distances[5, :5].min() / max(distances[i, i + 1] for i in range(4))
    assert f"it is {ratio:.3g} times as far from all others as any two neighbours are from each other" in said


def test_a_start_that_training_left_fast_is_on_the_path(found: Any) -> None:
    """A first update that is longer than the later ones is usual; the path from there on is as long."""

    def change(snapshots: Snapshots) -> None:
        for name, tensor in snapshots[0].items():
            snapshots[0][name] = tensor + 2.5 * (tensor - snapshots[1][name])

    assert found(change) == []


def test_late_checkpoints_are_far_from_the_start(found: Any) -> None:
    """More steps lie between the first two than between all others."""

    def change(snapshots: Snapshots) -> None:
        for name, tensor in snapshots[0].items():
            snapshots[0][name] = tensor + 30 * (tensor - snapshots[1][name])

    assert not any("off the path" in sentence for sentence in found(change, steps=[0, 1000, 1010, 1020, 1030, 1040]))
    assert any("off the path" in sentence for sentence in found(change))


def test_between_duplicates_nothing_is_said_of_distances(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[4] = snapshots[2]

    assert found(change) == ["step20.pt and step40.pt hold exactly the same weights."]


def test_a_run_that_stands_still(found: Any) -> None:
    def change(snapshots: Snapshots) -> None:
        snapshots[:] = [snapshots[0]] * len(snapshots)

    assert found(change) == ["step0.pt, step10.pt, step20.pt and 3 more hold exactly the same weights."]
