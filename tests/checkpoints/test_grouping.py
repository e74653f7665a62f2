"""Folders as people have them: what is one series, what is several, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import reference
from lightning_traj import Trajectory, from_checkpoints
from lightning_traj.checkpoints.grouping import SeveralSeries
from lightning_traj.checkpoints.paths import find
from lightning_traj.checkpoints.series import open_series, series_in
from lightning_traj.cli.command import SEVERAL, main

pytestmark = pytest.mark.usefixtures("one_thread")
State = dict[str, torch.Tensor]
SHAPES = {"fc1.weight": (6, 5), "fc1.bias": (6,), "fc2.weight": (4, 6), "fc2.bias": (4,)}
WIDER = {"fc1.weight": (12, 5), "fc1.bias": (12,), "fc2.weight": (4, 12), "fc2.bias": (4,)}
OTHER = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "out.weight": (1, 3)}
NUMBERS = (1, 2, 10, 20)

CONTRADICTED = "the order given contradicts the numbers in names"

# How frameworks name files, how they wrap weights, and what else lies in their folders.
NAMES: Mapping[str, Callable[[int], str]] = {
    "plain": lambda n: f"model_{n}.pth",
    "Lightning": lambda n: f"epoch={n}-step={7 * n}.ckpt",
    "timm": lambda n: f"checkpoint-{n}.pth.tar",
    "DINO": lambda n: f"checkpoint{n:04d}.pth",
    "fairseq": lambda n: f"checkpoint_{n}_{100 * n}.pt",
    "detectron2": lambda n: f"model_{n:07d}.pth",
    "mmcv": lambda n: f"epoch_{n}.pth",
    "folder of each": lambda n: f"epoch_{n}/weights.pt",
    "Keras": lambda n: f"weights.{n:02d}-{1 / n:.2f}.pt",
    "Trainer": lambda n: f"checkpoint-{n}/pytorch_model.bin",
}
CONTENTS: Mapping[str, Callable[[State, int], Any]] = {
    "state dict": lambda state, n: state,
    "epoch": lambda state, n: {"epoch": n, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}},
    "mmengine": lambda state, n: {"meta": {"epoch": n, "iter": 100 * n, "seed": 7}, "state_dict": state},
    "iteration": lambda state, n: {"model": state, "iteration": torch.tensor(100 * n)},
    "wrapped": lambda state, n: {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
}
# Name -> what is written beside a series, and what is said of it.
BESIDE: Mapping[str, tuple[Callable[[State], Any], str]] = {
    "best.pt": (lambda last: dict(last), "neither a file nor its name says when it was written"),
    "final.pth": (lambda last: dict(last), "neither a file nor its name says when it was written"),
    "model.bin": (lambda last: dict(last), "neither a file nor its name says when it was written"),
    "optimizer.pt": (
        lambda _: {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "holds the state of an optimizer",
    ),
    "scheduler.pt": (lambda _: {"last_epoch": 3, "base_lrs": [0.1]}, "nor any tensor: the file has 'last_epoch'"),
    "rng_state.pth": (lambda _: {"cpu": torch.zeros(5, dtype=torch.uint8)}, "holds no floating-point tensors"),
    "teacher.pt": (lambda _: {"other.weight": torch.ones(3, 3)}, "holds other tensors than"),
}


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """A folder of files, all of one time, as if unpacked from an archive."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        os.utime(path, (10**9, 10**9))
    return folder


@pytest.fixture
def states(walk: Callable[..., list[State]]) -> Callable[..., dict[int, State]]:
    """The parameters of a model by the number of its checkpoint."""

    def make(shapes: Mapping[str, tuple[int, ...]] = SHAPES, seed: int = 0, numbers: Any = NUMBERS) -> dict[int, State]:
        return dict(zip(numbers, walk(shapes, len(numbers), seed=seed), strict=True))

    return make


def named(pattern: str, states: Mapping[int, State]) -> dict[str, State]:
    return {pattern.format(n): state for n, state in states.items()}


def read(folder: Path, **arguments: Any) -> Any:
    return open_series(find(folder), explicit=set(), **arguments)


def first_entries(series: Any) -> list[float]:
    return [float(c.read(next(n for n in c.shapes if n.endswith("fc1.bias")))[0]) for c in series.checkpoints]


def is_right(trajectory: Trajectory, states: list[State], stacked: Callable[..., Any]) -> None:
    """The measures of a trajectory are those of these parameters, by definition."""
    thetas, summary = stacked(states), trajectory.summary()
    expected = {
        "turn": reference.turn(thetas)[-1],
        "tortuosity": reference.tortuosity(thetas),
        "displacement": reference.displacement(thetas)[-1],
        "mds": reference.mean_directional_similarity(list(thetas)),
        "update_angle": reference.update_angle(thetas)[-1],
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("layout", "content"),
    [(layout, content) for layout in NAMES for content in CONTENTS if layout != "Trainer" or content == "state dict"],
)
def test_folders_of_one_series(tmp_path: Path, states: Any, layout: str, content: str) -> None:
    expected = states()
    files = {NAMES[layout](n): CONTENTS[content](state, n) for n, state in expected.items()}
    alone = read(write(tmp_path / "run", files))
    entries = [float(state["fc1.bias"][0]) for state in expected.values()]
    assert first_entries(alone) == entries
    last = CONTENTS["state dict"](expected[NUMBERS[-1]], 0)
    for name, (make, _) in BESIDE.items():
        write(tmp_path / "run", {name: make(last)})
    mixed = read(tmp_path / "run")
    assert first_entries(mixed) == entries
    assert mixed.steps.tolist() == alone.steps.tolist()
    for name, (_, said) in BESIDE.items():
        assert any(
            said in finding and (name in finding or "more" in finding) for finding in map(str, mixed.findings)
        ), name


def test_an_untrained_model_is_step_0(tmp_path: Path, states: Any, stacked: Any) -> None:
    expected = states(numbers=range(5))
    files = {
        "epoch_init.pt": expected[0],
        **{f"epoch_{n}.pt": expected[n] for n in range(1, 5)},
        "best.pt": expected[3],
    }
    trajectory = from_checkpoints(write(tmp_path / "run", files))
    assert trajectory.steps.tolist() == [0, 1, 2, 3, 4]
    is_right(trajectory, list(expected.values()), stacked)
    said = trajectory.settings["findings"]
    assert any("epoch_init.pt is taken for step 0, as its name says" in finding for finding in said)
    assert any("best.pt is left out: neither a file nor its name" in finding for finding in said)
    assert not any("initialisation" in finding for finding in said)  # it is one
    given = from_checkpoints(tmp_path / "run", order="given")  # of a folder, what is initial comes first
    is_right(given, list(expected.values()), stacked)


def test_an_untrained_model_is_before_epoch_0(tmp_path: Path, states: Any) -> None:
    expected = states(numbers=range(4))
    files = {"init.pt": expected[0], **{f"net_epoch{n - 1}.pt": expected[n] for n in range(1, 4)}}
    series = read(write(tmp_path, files))
    assert series.steps.tolist() == series.epochs.tolist() == [0, 1, 2, 3]
    assert first_entries(series) == [float(state["fc1.bias"][0]) for state in expected.values()]
    assert any("the others are counted from 1: one of them is called 0" in finding.text for finding in series.findings)
    write(tmp_path, {"net_epoch0.pt": expected[0]})  # the same as init.pt
    series = read(tmp_path)
    assert series.steps.tolist() == [0, 1, 2]
    assert any("epoch 0 occurs twice: net_epoch0.pt is taken" in finding.text for finding in series.findings)


def test_an_untrained_model_that_is_given_last(tmp_path: Path, states: Any) -> None:
    expected = states(numbers=range(5))
    write(tmp_path, {"epoch_init.pt": expected[0], **{f"epoch_{n}.pt": expected[n] for n in range(1, 5)}})
    by_letters = sorted(tmp_path.iterdir())
    assert by_letters[-1].name == "epoch_init.pt"
    source = from_checkpoints(by_letters, order="given").provenance.source
    assert source is not None
    first = source.findings[0]
    assert (first.kind, first.severity) == ("order", "warning")
    assert first.text.startswith(f"{CONTRADICTED}: epoch_4.pt comes before")
    assert "epoch_init.pt, epoch 4 before 0. All measures depend on the order" in first.text


def test_steps_that_start_anew_in_each_epoch(tmp_path: Path, states: Any) -> None:
    """What the files say is taken, with a warning that their names contradict it."""
    contents = dict(zip(range(5), states(numbers=range(5)).values(), strict=True))
    steps = (100, 200, 50, 150, 10)
    write(tmp_path, {f"save{i}.pt": {"step": steps[i], "epoch": i // 2, "model": contents[i]} for i in range(5)})
    series = read(tmp_path)
    assert series.steps.tolist() == sorted(steps)
    (found,) = (finding for finding in series.findings if finding.kind == "order")
    assert found.severity == "warning"
    assert "save4.pt is of step 10, and save2.pt of step 50. All measures depend on the order" in found.text
    files = [tmp_path / f"save{i}.pt" for i in range(5)]
    given = open_series(files, order="given", explicit=files)
    assert [c.path for c in given.checkpoints] == files


def test_states_of_optimizers_are_left_out_by_their_keys(tmp_path: Path, states: Any) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    write(tmp_path, named("net_{}.pt", states()) | {"optim_1.pt": {"optimizer": moments, "epoch": 1}})
    series = read(tmp_path)
    assert series.steps.tolist() == list(NUMBERS)
    assert any(
        f.text.startswith("optim_1.pt is left out: no state dict found, only the state") for f in series.findings
    )


def test_a_last_checkpoint_that_is_given_first(tmp_path: Path, states: Any) -> None:
    expected = states()
    write(tmp_path, {**named("net_{}.pt", expected), "last.pt": expected[20]})
    files = [tmp_path / name for name in ("last.pt", "net_1.pt", "net_2.pt", "net_10.pt")]
    said = from_checkpoints(files, order="given").settings["findings"]
    assert said[0].startswith(f"{CONTRADICTED}: ")
    assert "last.pt comes before net_1.pt" in said[0]
    in_order = from_checkpoints([*files[1:], files[0]], order="given")
    assert in_order.steps.tolist() == [0, 1, 2, 3]
    assert "order" not in in_order.settings["finding_kinds"]
    assert from_checkpoints([tmp_path, files[0]], order="given").settings["checkpoints"][-1].endswith("last.pt")
    assert len(from_checkpoints(tmp_path, order="given").steps) == 4


def test_numbers_that_start_anew_in_the_next_folder(tmp_path: Path, states: Any) -> None:
    """A given order is what tells how runs follow each other: nothing contradicts it."""
    write(tmp_path, named("a/ckpt_{}.pt", states()) | named("b/ckpt_{}.pt", states(seed=1)))
    series = open_series(find([tmp_path / "a", tmp_path / "b"]), order="given", explicit=set())
    assert series.steps.tolist() == list(range(8))
    assert not any(finding.kind == "order" for finding in series.findings)


def test_two_runs_in_one_folder_are_not_joined_by_an_order(tmp_path: Path, states: Any) -> None:
    folder = write(tmp_path / "runs", named("a_{}.pt", states()) | named("b_{}.pt", states(seed=1)))
    with pytest.raises(SeveralSeries, match=r"a: 4 files.*\n.*b: 4 files"):
        from_checkpoints(folder, order="given")
    files = [folder / f"{run}_{n}.pt" for run in "ab" for n in NUMBERS]
    assert len(from_checkpoints(files, order="given")) == 8
    assert series_in(find(folder), order="given", explicit={folder}) == ["a", "b"]
    assert len(series_in(files, order="given", explicit=files)) == 1


def test_long_names_of_series(tmp_path: Path, states: Any) -> None:
    long = "x" * 200
    write(tmp_path, named(f"{long}_a_{{}}.pt", states()) | named(f"{long}_b_{{}}.pt", states(seed=1)))
    names = series_in(find(tmp_path))
    assert len(set(names)) == 2
    assert max(map(len, names)) < 120


def test_an_optimizer_is_left_out_under_a_key_too(tmp_path: Path, states: Any) -> None:
    files = {f"net_{n}.pt": {"ema": state} for n, state in states().items()}
    write(tmp_path, files | {"optimizer_1.pt": {"state": {}, "param_groups": []}})
    assert read(tmp_path, key="ema").steps.tolist() == list(NUMBERS)


@pytest.fixture
def gan(tmp_path: Path, states: Any) -> tuple[Path, dict[int, State], dict[int, State]]:
    generator, discriminator = states(OTHER, seed=1), states(SHAPES)
    write(tmp_path / "gan", named("gen_epoch_{}.pt", generator) | named("disc_epoch_{}.pt", discriminator))
    return tmp_path / "gan", generator, discriminator


def test_a_gan_is_two_series(gan: Any, stacked: Any) -> None:
    folder, generator, discriminator = gan
    with pytest.raises(SeveralSeries) as raised:
        from_checkpoints(folder)
    assert isinstance(raised.value, ValueError)
    assert raised.value.names == ("disc_epoch", "gen_epoch")
    assert str(raised.value).splitlines() == [
        "the files are of several series:",
        "  disc_epoch: 4 files, 64 parameters (disc_epoch_1.pt … disc_epoch_20.pt)",
        "  gen_epoch: 4 files, 60 parameters (gen_epoch_1.pt … gen_epoch_20.pt)",
        'pick one with series="disc_epoch" (--series disc_epoch), or have a report of each with --series all.',
    ]
    for name, expected in (("gen_epoch", generator), ("disc_epoch", discriminator)):
        trajectory = from_checkpoints(folder, series=name)
        assert trajectory.steps.tolist() == list(NUMBERS)
        is_right(trajectory, list(expected.values()), stacked)
        assert any(f"of 2 series this is {name}" in finding for finding in trajectory.settings["findings"])
    with pytest.raises(SeveralSeries, match="series='gen': there is no such series"):
        from_checkpoints(folder, series="gen")
    with pytest.raises(SeveralSeries, match="series='all': there is no such series"):
        from_checkpoints(folder, series="all")


@pytest.fixture
def pictureless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_traj.report.trajectory_page._by_layer", lambda trajectory: iter(()))
    monkeypatch.setattr("lightning_traj.report.trajectory_page._over_time", lambda trajectory: iter(()))
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_layers", lambda *args: None)


def test_the_command_line_lists_series_and_picks_one(
    gan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], pictureless: None
) -> None:
    folder = gan[0]
    out = tmp_path / "out"
    assert main(["analyze", str(folder), "--out", str(out)]) == SEVERAL == 4
    error = capsys.readouterr().err
    assert error.startswith("lightning-traj: error: the files are of several series:")
    assert "--series disc_epoch" in error
    assert not out.exists()
    assert main(["analyze", str(folder), "--out", str(out), "--series", "gen"]) == SEVERAL
    assert main(["analyze", str(folder), "--out", str(out), "--series", "gen_epoch"]) == 0
    assert Trajectory.load(out / "trajectory.safetensors").steps.tolist() == list(NUMBERS)
    both = tmp_path / "both"
    assert main(["analyze", str(folder), "--out", str(both), "--series", "all"]) == 0
    assert sorted(path.name for path in both.iterdir()) == ["disc_epoch", "gen_epoch"]
    for name in ("disc_epoch", "gen_epoch"):
        written = Trajectory.load(both / name / "trajectory.safetensors")
        np.testing.assert_array_equal(written.anchored, from_checkpoints(folder, series=name).anchored)
        assert (both / name / "report.html").is_file()


def test_a_series_that_fails_is_named_and_the_others_are_written(
    gan: Any, tmp_path: Path, pictureless: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    nan = {name: torch.full(shape, torch.nan) for name, shape in OTHER.items()}
    write(gan[0], named("gen_epoch_{}.pt", dict.fromkeys(NUMBERS, nan)))
    command = ["analyze", str(gan[0]), "--out", str(out), "--series", "all"]
    assert main(command) == 3
    assert "error: series gen_epoch: 0 of 4 checkpoints are finite" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["disc_epoch"]
    assert (out / "disc_epoch" / "report.html").is_file()
    nan = {name: torch.full(shape, torch.nan) for name, shape in SHAPES.items()}
    write(gan[0], named("disc_epoch_{}.pt", dict.fromkeys(NUMBERS, nan)))
    assert main([*command, "--overwrite"]) == 1


def test_reports_of_each_that_are_interrupted_go_on(
    gan: Any, tmp_path: Path, pictureless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_traj.checkpoints import streaming

    out, read_block = tmp_path / "out", streaming.update_gram
    seen = []

    def interrupted(pieces: Any, *args: Any) -> Any:
        seen.append(pieces[0].parameter)
        if len(seen) == len(SHAPES) + 2:
            raise KeyboardInterrupt
        return read_block(pieces, *args)

    monkeypatch.setattr(streaming, "update_gram", interrupted)
    command = ["analyze", str(gan[0]), "--out", str(out), "--series", "all"]
    assert main(command) == 130
    assert all(path.name.startswith(".") for path in out.iterdir())
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["disc_epoch", "gen_epoch"]
    assert len(seen) == len(SHAPES) + len(OTHER) + 1  # only the block that was interrupted is read again


def test_a_report_of_each_where_there_is_one(
    tmp_path: Path, states: Any, capsys: pytest.CaptureFixture[str], pictureless: None
) -> None:
    folder = write(tmp_path / "run", named("net_{}.pt", states()))
    assert main(["analyze", str(folder), "--out", str(tmp_path / "out"), "--series", "all"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    files = sorted(map(str, folder.iterdir()))  # as a shell lists them: 1, 10, 2, 20
    assert main(["analyze", *files, "--out", str(tmp_path / "given"), "--order", "given"]) == 0
    captured = capsys.readouterr()
    assert "lightning-traj: warning: the order given contradicts" in captured.err
    assert "net_10.pt comes before net_2.pt" in captured.err


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("G_{}.pth", "D_{}.pth", ["D", "G"]),
        ("{}_net_G_A.pth", "{}_net_G_B.pth", ["net_G_A", "net_G_B"]),
        ("model_{}.pt", "ema_{}.pt", ["ema", "model"]),
        ("step={}.ckpt", "step={}-ema.ckpt", ["step", "step_ema"]),
        ("seed0_e{}.pt", "seed1_e{}.pt", ["seed0_e", "seed1_e"]),
        ("run_{}.pt", "run_{}-v1.pt", ["run", "run_v1"]),
        ("a/ckpt_{}.pt", "b/ckpt_{}.pt", ["a_ckpt", "b_ckpt"]),
        ("model1_epoch{}.pt", "model2_epoch{}.pt", ["model1_epoch", "model2_epoch"]),
        ("member_0_epoch_{}.pt", "member_1_epoch_{}.pt", ["member_0_epoch", "member_1_epoch"]),
        ("agent1_{}.pt", "agent2_{}.pt", ["agent1", "agent2"]),
        (
            "width1-epoch={0}-step={0}00.ckpt",
            "width2-epoch={0}-step={0}00.ckpt",
            ["width1_epoch_step", "width2_epoch_step"],
        ),
    ],
)
def test_networks_of_the_same_shapes(
    tmp_path: Path, states: Any, stacked: Any, one: str, other: str, names: list[str]
) -> None:
    first, second = states(), states(seed=1)
    write(tmp_path, named(one, first) | named(other, second))
    folders = [tmp_path] if "/" not in one else [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(SeveralSeries) as raised:
        from_checkpoints(folders)
    assert sorted(raised.value.names) == names
    shared = [name for name in names if len(name) == min(map(len, names))]
    expected = {one.format(1): first, other.format(1): second}
    for name in names if len(shared) == 2 else ():
        trajectory = from_checkpoints(folders, series=name)
        begin = str(Path(trajectory.settings["checkpoints"][0]).relative_to(tmp_path))
        is_right(trajectory, list(expected[begin].values()), stacked)


@pytest.mark.parametrize("second", [OTHER, SHAPES], ids=["other shapes", "same shapes"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_models_of_accelerate_are_several_series(
    tmp_path: Path, states: Any, stacked: Any, second: Any, suffix: str
) -> None:
    models = {"checkpoint": states(), "checkpoint_model_1": states(second, seed=1)}
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    for number, some in enumerate(models.values()):
        for n, state in some.items():
            file = tmp_path / "checkpoints" / f"checkpoint_{n}" / (f"{stem}_{number}" if number else stem)
            file.parent.mkdir(parents=True, exist_ok=True)
            save = save_file if suffix == ".safetensors" else torch.save
            save(state, file.with_name(file.name + suffix))
            torch.save({"step": 3}, file.with_name("scheduler.bin"))
    with pytest.raises(SeveralSeries) as raised:
        from_checkpoints(tmp_path)
    names = raised.value.names
    assert len(names) == 2
    for name, expected in zip(sorted(names, key=len), models.values(), strict=True):
        trajectory = from_checkpoints(tmp_path, series=name)
        assert trajectory.steps.tolist() == list(NUMBERS)
        is_right(trajectory, list(expected.values()), stacked)
        assert len({finding for finding in trajectory.settings["findings"] if "twice" in finding}) == 0


def test_files_in_folders_of_runs_are_no_series(tmp_path: Path, states: Any) -> None:
    write(tmp_path, named("run_{}/weights.pt", states()))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find(tmp_path)


def test_dates_of_mmengine_are_in_its_meta(tmp_path: Path, states: Any) -> None:
    contents = {n: CONTENTS["mmengine"](state, n) for n, state in states().items()}
    series = read(write(tmp_path, named("epoch_{}.pth", contents)))
    assert series.steps.tolist() == [100 * n for n in NUMBERS]
    assert series.epochs.tolist() == list(NUMBERS)
    best = read(write(tmp_path, {"best_coco_bbox_mAP.pth": CONTENTS["mmengine"](states()[10], 15)}))
    assert best.steps.tolist() == [100, 200, 1000, 1500, 2000]


def test_runs_that_were_written_one_after_the_other(tmp_path: Path, states: Any) -> None:
    for number, seed in enumerate((1, 2)):
        for n, state in states(seed=seed).items():
            file = write(tmp_path, {f"client_{seed}_round_{n}.pt": state}) / f"client_{seed}_round_{n}.pt"
            os.utime(file, (10**9 + 10**6 * number + n,) * 2)
    assert series_in(find(tmp_path)) == ["client_1_round", "client_2_round"]


def test_expanded_buffers_are_not_compared(tmp_path: Path, states: Any) -> None:
    mask = torch.zeros(1).expand(10**6, 10**7)  # 40 TB, had they been copied
    files = {n: {**state, "mask": mask} for n, state in states().items()}
    write(tmp_path, {"init.pt": files[1], **named("net_epoch{}.pt", {n - 1: file for n, file in files.items()})})
    series = read(tmp_path)
    assert series.steps.tolist() == [0, 1, 9, 19]
    assert any("epoch 0 occurs twice" in finding.text for finding in series.findings)


def test_files_of_a_folder_without_a_name(tmp_path: Path, states: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "here", named("{}.pt", states()) | named("d_{}.pt", states(OTHER)))
    monkeypatch.chdir(folder)
    assert sorted(series_in(find("."))) == ["d", "here"]


def test_copies_under_another_name_are_no_other_series(tmp_path: Path, states: Any) -> None:
    expected = states()
    write(tmp_path, named("epoch={}.pt", expected) | named("best-epoch={}.pt", {n: expected[n] for n in (2, 20)}))
    series = read(tmp_path)
    assert series.steps.tolist() == list(NUMBERS)
    assert any("epoch 2 occurs twice" in finding.text for finding in series.findings)


def test_models_of_several_widths(tmp_path: Path, states: Any) -> None:
    narrow, wide = states(numbers=(1, 2, 3)), states(WIDER, numbers=(4, 5, 6))
    folder = write(tmp_path, named("model_{}.pt", narrow) | named("model_{}.pt", wide))
    with pytest.raises(SeveralSeries, match=r"model-1: 3 files, 64 parameters.*\n.*model-2: 3 files, 124 parameters"):
        from_checkpoints(folder)
    assert series_in(find(folder)) == ["model-1", "model-2"]
    assert from_checkpoints(folder, series="model-2").steps.tolist() == [4, 5, 6]


def test_two_unlike_networks(tmp_path: Path, states: Any) -> None:
    write(tmp_path, {"model_1.pt": states()[1], "model_2.pt": states(OTHER)[1]})
    with pytest.raises(
        SeveralSeries, match=r"no two of the files are of one series.*\n.*model_1: 1 file, .*\n.*\n.*--partial"
    ):
        from_checkpoints(tmp_path)
    assert len(from_checkpoints(tmp_path, partial=True).blocks) == 7


@pytest.mark.parametrize(
    ("prefix", "said", "processes"),
    [
        ("module.", "'module.'", 1),
        ("module.", "'module.'", 2),
        ("_orig_mod.", "", 1),
        ("model.", "'model.'", 1),
        ("module.model.", "'module.model.'", 1),
    ],
)
def test_wrappers_of_some_checkpoints(
    tmp_path: Path, states: Any, stacked: Any, prefix: str, said: str, processes: int
) -> None:
    expected = states()
    wrapped = {n: {f"{prefix}{name}": tensor for name, tensor in expected[n].items()} for n in (2, 20)}
    trajectory = from_checkpoints(write(tmp_path, named("net_{}.pt", expected | wrapped)), processes=processes)
    assert sorted(block.name for block in trajectory.blocks) == sorted(SHAPES)
    is_right(trajectory, list(expected.values()), stacked)
    sentence = f"names of parameters begin with {said} in net_2.pt and net_20.pt: they are taken for the same."
    if not said:  # torch.compile's prefix may stand anywhere in a name
        sentence = "'_orig_mod.' in names of parameters in net_2.pt and net_20.pt is left aside."
    assert sentence in trajectory.settings["findings"]


def test_prefixes_that_all_have_stay(tmp_path: Path, states: Any) -> None:
    wrapped = {n: {f"model.{name}": tensor for name, tensor in state.items()} for n, state in states().items()}
    trajectory = from_checkpoints(write(tmp_path, named("net_{}.pt", wrapped)))
    assert all(block.name.startswith("model.") for block in trajectory.blocks)


def test_a_prefix_that_most_have_is_kept(tmp_path: Path, states: Any) -> None:
    expected = states()
    wrapped = {n: {f"model.{name}": tensor for name, tensor in expected[n].items()} for n in (1, 2, 10)}
    trajectory = from_checkpoints(write(tmp_path, named("net_{}.pt", expected | wrapped)))
    assert all(block.name.startswith("model.") for block in trajectory.blocks)
    assert any("'model.' in all but net_20.pt" in finding for finding in trajectory.settings["findings"])


def test_names_that_are_the_same_without_wrappers_stay_apart(tmp_path: Path, states: Any) -> None:
    both = {n: state | {f"model.{name}": tensor + 1 for name, tensor in state.items()} for n, state in states().items()}
    assert len(from_checkpoints(write(tmp_path, named("net_{}.pt", both))).blocks) == 8


def test_a_vocabulary_that_grew(tmp_path: Path, states: Any) -> None:
    small = states({"emb.weight": (3, 4), **SHAPES, "head.weight": (3, 4)})
    for n in (10, 20):
        for name in ("emb.weight", "head.weight"):
            small[n][name] = torch.cat([small[n][name], torch.ones(2, 4)])
    said = from_checkpoints(write(tmp_path, named("net_{}.pt", small))).settings["findings"]
    assert sum("changes its shape" in finding for finding in said) == 2


def test_a_head_that_comes_late(tmp_path: Path, states: Any) -> None:
    late = states({**SHAPES, "head.weight": (3, 4), "head.bias": (3,)})
    for n in (1, 2):
        del late[n]["head.weight"], late[n]["head.bias"]
    trajectory = from_checkpoints(write(tmp_path, named("net_{}.pt", late)))
    assert len(trajectory.blocks) == 6
    assert trajectory.steps.tolist() == list(NUMBERS)


def test_less_than_half_of_the_parameters_is_matched(tmp_path: Path, states: Any) -> None:
    large = states({"emb.weight": (80, 4), **SHAPES})
    for n in (10, 20):
        large[n]["emb.weight"] = torch.cat([large[n]["emb.weight"], torch.ones(2, 4)])
    folder = write(tmp_path, named("net_{}.pt", large))
    message = (
        r"only 64 of the 384 parameters in net_1\.pt could be matched with those of other files, by name and shape: "
        r"pass files of one model, or partial=True \(--partial\) to analyse their common parameters"
    )
    with pytest.raises(ValueError, match=message):
        from_checkpoints(folder)
    assert len(from_checkpoints(folder, partial=True).blocks) == 4


def test_a_frozen_base_is_not_left_out(tmp_path: Path, states: Any, stacked: Any) -> None:
    lora = states({"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)})
    base = {"base.weight": torch.randn(50, 50), "base.bias": torch.randn(50)}
    trajectory = from_checkpoints(write(tmp_path, named("step{}.pt", {n: base | state for n, state in lora.items()})))
    assert len(trajectory.blocks) == 4
    is_right(trajectory, list(lora.values()), stacked)  # what never moved is not counted, as in training


def test_adapters_beside_their_base(tmp_path: Path, states: Any) -> None:
    adapters = {f"checkpoint-{n}/adapter_model.bin": state for n, state in states({"q.lora_A.weight": (2, 8)}).items()}
    trajectory = from_checkpoints(write(tmp_path, adapters | {"base.pt": states()[1]}))
    assert [block.name for block in trajectory.blocks] == ["q.lora_A.weight"]


def test_numbers_that_count_different_things(tmp_path: Path, states: Any) -> None:
    """fairseq names checkpoints within an epoch by epoch and step, those at its end by the epoch."""
    within, at_end = states(numbers=(1000, 2000)), states(seed=1, numbers=(1, 2, 3))
    write(tmp_path, named("checkpoint_1_{}.pt", within) | named("checkpoint{}.pt", at_end))
    with pytest.raises(SeveralSeries, match=r"3 files.*\n.*2 files"):
        from_checkpoints(tmp_path)


def test_steps_and_epochs_of_transformers_trainer(tmp_path: Path, states: Any) -> None:
    for n, state in states().items():
        folder = write(tmp_path / f"checkpoint-{n}", {"pytorch_model.bin": state})
        (folder / "trainer_state.json").write_text(f'{{"global_step": {float(5 * n)}, "epoch": {n / 4}}}')
    series = read(tmp_path)
    assert series.steps.tolist() == [5, 10, 50, 100]
    assert series.epochs.tolist() == [0.25, 0.5, 2.5, 5.0]


@pytest.mark.parametrize(
    "step", [30.0, torch.tensor(30), torch.tensor([30]), torch.tensor(30.0), torch.tensor([[30.0]])]
)
def test_steps_as_tensors_and_floats(tmp_path: Path, states: Any, step: Any) -> None:
    files = {f"{name}.pt": {"model": states()[1], "global_step": step + more} for name, more in (("b", 0), ("a", 70))}
    series = read(write(tmp_path, files))
    assert series.steps.tolist() == [30, 100]
    assert series.findings == ()


def test_epochs_with_fractions(tmp_path: Path, states: Any) -> None:
    files = {
        f"{name}.pt": {"model": states()[1], "epoch": epoch} for name, epoch in (("b", 0.5), ("a", 1.5), ("c", 2.0))
    }
    series = read(write(tmp_path, files))
    assert (series.steps.tolist(), series.epochs.tolist()) == ([0, 1, 2], [0.5, 1.5, 2.0])
    assert series.findings[-1].text == "epochs are fractional: checkpoints are counted instead of steps."


def test_numbers_are_not_blamed(tmp_path: Path, states: Any) -> None:
    """The error names the files that say nothing, and not the one with a number."""
    one = states()[1]
    write(tmp_path, {"step1.pt": one, "best.pt": one, "final.pt": one})
    with pytest.raises(ValueError, match=r"best\.pt and 1 more: neither the file nor its name says"):
        from_checkpoints(tmp_path)


def test_grouping_reads_no_tensors(tmp_path: Path, states: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_traj.checkpoints.formats.checkpoint import Checkpoint

    write(tmp_path, named("net_{}.pt", states()) | named("module_{}.pt", states(OTHER)))
    monkeypatch.setattr(Checkpoint, "read", None)
    assert series_in(find(tmp_path)) == ["module", "net"]
