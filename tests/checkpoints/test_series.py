"""Which checkpoints there are, and their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_traj import Trajectory, from_checkpoints
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import open_checkpoint
from lightning_traj.checkpoints.paths import find
from lightning_traj.checkpoints.series import open_series


def save(path: Path, content: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.ones(2)} if content is None else content, path)
    return path


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=3-step=120.ckpt", 120),
        ("epoch=3-step=120-v1.ckpt", 120),
        ("epoch=3-step=120-val_loss=0.5.ckpt", 120),
        ("step1000.pt", 1000),
        ("step_1000.pt", 1000),
        ("Step-1000.pt", 1000),
        ("step 1000.pt", 1000),
        ("model.step.1000.pt", 1000),
        ("steps1000-tokens4B.pt", 1000),
        ("global_step500.pt", 500),
        ("step000500.pt", 500),
        ("step_10k.pt", 10_000),
        ("step1M.pt", 1_000_000),
        ("1000steps.pt", 1000),
        ("net_500_steps.pt", 500),
        ("iter_0000500.pt", 500),
        ("iteration-500.pt", 500),
        ("checkpoint_3_500.pt", 500),
        ("checkpoint2-step500.pt", 500),
        ("step500-checkpoint2.pt", 500),
        ("epoch=7.ckpt", None),
        ("last.ckpt", None),
        ("footstep.pt", None),
        ("step1e5.pt", None),
        ("step99999999999999999999.pt", None),
        ("v2.pt", None),
    ],
)
def test_steps_in_names(tmp_path: Path, name: str, step: int | None) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "run-step7" / name))
    assert checkpoint.step == step
    assert checkpoint.epoch == (7 if name == "epoch=7.ckpt" else None)


@pytest.mark.parametrize("name", ["checkpoint-500.pt", "checkpoint500.pt", "ckpt_500.pt", "000500.pt"])
def test_numbers_in_names(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(save(tmp_path / name))
    assert (checkpoint.step, checkpoint.epoch, checkpoint.number) == (None, None, 500)


def test_the_folders_of_transformers_trainer_are_called_by_their_steps(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "checkpoint-500" / "pytorch_model.bin").parent)
    assert (checkpoint.step, checkpoint.number) == (500, None)


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"global_step": 30}, 30),
        ({"step": 30}, 30),
        ({"iteration": 30}, 30),
        ({"iter_num": 30}, 30),
        ({"global_step": 30, "iteration": 7}, 30),
        ({"global_step": -1}, 99),
        ({"global_step": True}, 99),
        ({"global_step": 10**30}, 99),
        ({"global_step": "30"}, 99),
        ({}, 99),
    ],
)
def test_the_content_is_believed_before_the_name(tmp_path: Path, state: dict[str, Any], step: int) -> None:
    path = save(tmp_path / "step99.pt", {"model": {"w": torch.ones(2)}, **state})
    assert open_checkpoint(path).step == step


def opened(*paths: Path, **arguments: Any) -> Any:
    return open_series(find(paths), **arguments)


def test_order_by_step(tmp_path: Path) -> None:
    files = [save(tmp_path / f"step{step}.pt") for step in (100, 9, 20)]
    series = opened(tmp_path)
    assert series.steps.tolist() == [9, 20, 100]
    assert [c.path for c in series.checkpoints] == [files[1], files[2], files[0]]
    assert series.findings == ()


def test_the_given_order(tmp_path: Path) -> None:
    files = [save(tmp_path / name) for name in ("b.pt", "a.pt", "c.pt")]
    series = opened(*files, order="given")
    assert [c.path for c in series.checkpoints] == files
    assert series.steps.tolist() == [0, 1, 2]
    assert "counted as given" in series.findings[0].text
    dated = [save(tmp_path / f"step{step}.pt") for step in (5, 7)]
    assert opened(*dated, order="given").steps.tolist() == [5, 7]
    backwards = opened(*dated[::-1], order="given")
    assert backwards.steps.tolist() == [0, 1]
    assert backwards.findings[0].text.startswith(
        "the order given contradicts the numbers in names: step7.pt comes before"
    )


def test_a_folder_in_the_given_order_is_in_that_of_its_numbers(tmp_path: Path) -> None:
    files = [save(tmp_path / f"net{i}.pt") for i in (1, 2, 10)]
    series = opened(tmp_path, order="given")
    assert [c.path for c in series.checkpoints] == files
    assert series.steps.tolist() == [1, 2, 10]
    assert len(series.findings) == 1
    by_letters = opened(*sorted(files), order="given")  # as a shell lists them
    assert by_letters.steps.tolist() == [0, 1, 2]
    assert "net10.pt comes before net2.pt, number 10 before 2" in by_letters.findings[0].text
    assert "net2.pt comes before net1.pt" not in by_letters.findings[0].text
    assert "net10.pt comes before net2.pt" in opened(*files[::-1], order="given").findings[0].text


def test_epochs_that_go_backwards_in_the_given_order(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{name}-epoch={epoch}.pt") for name, epoch in (("a", 3), ("b", 1))]
    said = opened(*files, order="given").findings[0].text
    assert "a-epoch=3.pt comes before b-epoch=1.pt, epoch 3 before 1." in said
    assert opened(*files[::-1], order="given").steps.tolist() == [1, 3]


def test_epochs_alone(tmp_path: Path) -> None:
    for epoch in (10, 0, 2):
        save(tmp_path / f"epoch={epoch}.pt")
    series = opened(tmp_path)
    assert series.steps.tolist() == [0, 2, 10]
    assert "epochs are" in series.findings[0].text


def test_epochs_in_files(tmp_path: Path) -> None:
    """As PyTorch's tutorial saves them; their names count something else."""
    for number, epoch in enumerate((10, 1, 2)):
        save(tmp_path / f"ckpt_{number}.pt", {"epoch": epoch, "model_state_dict": {"w": torch.ones(2)}})
    save(tmp_path / "last2.pt", {"epoch": 2, "model_state_dict": {"w": torch.ones(2)}})
    series = opened(tmp_path)
    assert series.steps.tolist() == series.epochs.tolist() == [1, 2, 10]
    assert tuple(map(str, series.findings)) == (
        "steps are not known, epochs are: these are counted as steps.",
        "epoch 2 occurs twice: ckpt_2.pt is taken, last2.pt left out.",
    )


def test_steps_are_believed_before_epochs(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2)}, "epoch": 3}
    for name, more in (("a.pt", {"global_step": 120}), ("step120.pt", {}), ("ckpt_9-step_120.pt", {})):
        checkpoint = open_checkpoint(save(tmp_path / name, state | more))
        assert (checkpoint.step, checkpoint.epoch, checkpoint.number) == (120, None, None)
    for wrong in (True, -1, float("nan"), "3", 10**30, torch.ones(2)):
        assert open_checkpoint(save(tmp_path / "a.pt", state | {"epoch": wrong})).epoch is None
    lightning = {"state_dict": {"w": torch.ones(2)}, "epoch": 3, "loops": loops(4, False)}  # within the fourth
    assert open_checkpoint(save(tmp_path / "a.ckpt", lightning)).epoch is None


def test_guessed_steps(tmp_path: Path) -> None:
    save(tmp_path / "step0.pt")
    for number in (10, 9):
        save(tmp_path / f"ckpt_{number}.pt")
    series = opened(tmp_path)
    assert series.steps.tolist() == [0, 9, 10]
    assert tuple(map(str, series.findings)) == (
        "steps are guessed from the numbers of names, such as ckpt_9.pt: they may be epochs.",
    )


def test_unknown_steps(tmp_path: Path) -> None:
    save(tmp_path / "step1.pt")
    save(tmp_path / "a.pt")
    save(tmp_path / "b.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt and 1 more: neither the file nor its name.*step=1000\.pt.*--order given"
    ):
        opened(tmp_path)


def test_repeated_steps(tmp_path: Path) -> None:
    for name, step in (("step=4.pt", 4), ("last.pt", 4), ("step=2.pt", 2)):
        save(tmp_path / name, {"state_dict": {"w": torch.ones(2)}, "global_step": step})
    series = opened(tmp_path)
    assert series.steps.tolist() == [2, 4]
    assert "step 4 occurs twice" in series.findings[0].text
    with pytest.raises(ValueError, match="all checkpoints are of step 4"):
        opened(tmp_path / "step=4.pt", tmp_path / "last.pt")


def loops(epoch: int, last: bool) -> Any:
    """What Lightning writes of its progress."""
    return {
        "fit_loop": {
            "epoch_progress": {"current": {"ready": epoch}},
            "epoch_loop.batch_progress": {"is_last_batch": last},
        }
    }


def test_whole_epochs_alone(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        content = {"state_dict": {"w": torch.randn(2)}, "global_step": 4 * epoch, "loops": loops(epoch, True)}
        save(tmp_path / f"{epoch}.ckpt", content)
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.epochs.dtype == np.float64
    trajectory.save(tmp_path / "trajectory.safetensors")
    assert Trajectory.load(tmp_path / "trajectory.safetensors").epochs.tolist() == [1, 2, 3]


def test_epochs_between_known_ones(tmp_path: Path) -> None:
    for step, epoch, last in ((0, 0, False), (5, 1, False), (10, 1, True), (25, 3, False), (40, 4, True)):
        save(
            tmp_path / f"{step}.ckpt",
            {"state_dict": {"w": torch.ones(1)}, "global_step": step, "loops": loops(epoch, last)},
        )
    assert opened(tmp_path).epochs.tolist() == [0, 0.5, 1, 2.5, 4]


def test_where_checkpoints_are_looked_for(tmp_path: Path) -> None:
    inside = [save(tmp_path / "version_0" / "checkpoints" / f"step={s}.ckpt") for s in (1, 2)]
    for name in ("trajectory", "traj_gradient"):  # of two callbacks in one run
        from_checkpoints(inside).save(tmp_path / "version_0" / f"{name}.safetensors")
    (tmp_path / "version_0" / "metrics.csv").write_text("x")
    save(tmp_path / "version_0" / ".hidden.pt")
    assert find(tmp_path / "version_0") == inside
    assert find([str(inside[1]), tmp_path / "version_0"]) == inside[::-1]  # each once
    folders = [save(tmp_path / "hub" / f"step{s}" / "pytorch_model.bin").parent for s in (10, 9)]
    assert find(tmp_path / "hub") == folders[::-1]
    assert opened(tmp_path / "hub").steps.tolist() == [9, 10]
    assert opened(*(folder / "pytorch_model.bin" for folder in folders)).steps.tolist() == [9, 10]


@pytest.mark.parametrize(
    "names",
    [
        ("consolidated.00.pth", "consolidated.01.pth"),
        ("model_states_rank_0.pt", "model_states_rank_1.pt"),
        ("iter_10/mp_rank_00/model_optim_rng.pt", "iter_10/mp_rank_01/model_optim_rng.pt"),
        ("mp_rank_00_000/weights.pt", "mp_rank_00_001/weights.pt"),
    ],
)
def test_shards_of_one_checkpoint_are_no_trajectory(tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [save(tmp_path / name) for name in names]
    with pytest.raises(ValueError, match=r"are shards of one checkpoint, .*: merge them") as raised:
        from_checkpoints(paths)
    assert all(str(path) in str(raised.value) for path in paths)
    if paths[0].parent == tmp_path:
        with pytest.raises(ValueError, match="are shards of one checkpoint"):
            find(tmp_path)


def test_one_shard_of_several_steps_is_read(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"step_{i}" / "consolidated.00.pth", {"w": torch.full((2,), i + 1.0)}) for i in range(3)]
    assert find(paths) == paths
    ranks = [save(tmp_path / f"lora_rank_{rank}.pt") for rank in (4, 8)]
    assert find(ranks) == ranks


def test_negative_numbers_are_said_to_be_the_reason(tmp_path: Path) -> None:
    for epoch in (-1, 0, 1, 2):
        save(tmp_path / f"epoch_{epoch}.pt", {"w": torch.full((2,), epoch + 2.0)})
    opened = open_series(find(tmp_path))
    assert [c.path.stem for c in opened.checkpoints] == ["epoch_0", "epoch_1", "epoch_2"]
    told = [finding.text for finding in opened.findings if finding.kind == "left out"]
    assert told == ["epoch_-1.pt is left out: the number in its name is negative."]


@pytest.mark.parametrize(("value", "more"), [(1.0, ""), (9.0, ", though their weights differ")])
def test_two_first_checkpoints_with_other_weights_are_said(tmp_path: Path, value: float, more: str) -> None:
    for step in (0, 10):
        save(tmp_path / f"step_{step}.pt", {"w": torch.full((2,), step + 1.0)})
    save(tmp_path / "init.pt", {"w": torch.full((2,), value)})
    opened = open_series(find(tmp_path))
    assert [c.path.stem for c in opened.checkpoints] == ["step_0", "step_10"]
    (told,) = [finding.text for finding in opened.findings if finding.kind == "left out"]
    assert told.startswith("step 0 occurs twice: step_0.pt is taken, ")
    assert told.endswith(f"init.pt left out{more}.")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such file"):
        from_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no checkpoint: neither files that end in \.ckpt"):
        from_checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"0 checkpoint\(s\) to analyse"):
        from_checkpoints([])
    save(tmp_path / "step1.pt")
    with pytest.raises(ValueError, match=r"1 checkpoint\(s\) to analyse: a trajectory takes two"):
        from_checkpoints(tmp_path)
    (tmp_path / "step2.pt").write_bytes(b"x")
    for bad in ("step2.pt", "step0.pt"):
        (tmp_path / bad).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=rf"{bad} cannot be read .* pass skip_bad=True \(--skip-bad\)\.$"):
            from_checkpoints(tmp_path)
    (tmp_path / "step0.pt").unlink()
    with pytest.raises(CheckpointError) as alone:  # no other file could be read
        from_checkpoints([tmp_path / "step2.pt"])
    assert "--skip-bad" not in str(alone.value)
    with pytest.raises(ValueError, match=r"1 checkpoint\(s\).*1 could not be read; skipped: .*step2\.pt.*takes two"):
        from_checkpoints(tmp_path, skip_bad=True)
