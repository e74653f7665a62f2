"""Where files go: folders of this machine and remote ones, and loggers that name neither."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import fsspec
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure

import lightning_traj.loggers.trajectory
from launch import launch
from lightning_traj import EveryNSteps, HybridTraining, Trajectory, TrajectoryCallback
from lightning_traj.cli.command import main
from lightning_traj.compare.runs import load_runs
from lightning_traj.files import folders
from lightning_traj.files.atomic import files_in, is_remote, local_copy, local_path, replace_atomically
from models import Failing, Module
from models import fit as plain_fit

LOG_FIGURES = lightning_traj.loggers.trajectory.log_figures  # for its tests, ``fit`` puts an empty one in its place
NAME = "trajectory.safetensors"


class Store(MemoryFileSystem):
    """Keeps files in memory, may fail or wait, and has no rename, as object stores have none."""

    protocol = "store"
    store: dict[str, Any] = {}  # noqa: RUF012 - of the class, as in MemoryFileSystem
    pseudo_dirs = [""]  # noqa: RUF012
    puts: list[str] = []  # noqa: RUF012
    failures = 0  # how many of the next puts fail
    copies = True
    gate = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.replace("store://", "memory://") if isinstance(path, str) else path)

    def put_file(self, lpath: Any, rpath: Any, **kwargs: Any) -> None:
        cls = type(self)
        cls.puts.append(rpath.rpartition("/")[2])
        assert cls.gate.wait(60)
        if cls.failures > 0:
            cls.failures -= 1
            raise ConnectionError("the store does not answer")
        super().put_file(lpath, rpath, **kwargs)

    def mv(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("object stores have no rename")

    def cp_file(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        if not type(self).copies:
            raise NotImplementedError
        super().cp_file(path1, path2, **kwargs)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, a home directory, and empty remote stores."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fsspec.register_implementation("store", Store, clobber=True)
    Store.puts, Store.failures, Store.copies = [], 0, True
    Store.gate.set()
    yield tmp_path / "work"
    Store.gate.set()
    for system in (MemoryFileSystem, Store):
        system.store.clear()
        system.pseudo_dirs[:] = [""]
    assert not [thread for thread in threading.enumerate() if "uploads" in thread.name and thread.join(10)]


@pytest.fixture
def fit(fit: Any) -> Any:
    return partial(fit, log_every_n_steps=1)


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stored(url: str) -> list[str]:
    system, path = fsspec.core.url_to_fs(url)
    return sorted(file.removeprefix(path).lstrip("/") for file in system.find(path))


def assert_is(loaded: Trajectory, callback: TrajectoryCallback) -> None:
    assert loaded.steps.tolist() == callback.trajectory.steps.tolist()
    np.testing.assert_array_equal(loaded.gram(), callback.trajectory.gram())


# Places ----------------------------------------------------------------------------------------------------------


def test_places(here: Path) -> None:
    for place in ("memory://a", "s3://bucket/run", "gs://x", "hf://datasets/x", "simplecache::s3://bucket"):
        assert is_remote(place)
    for place in ("run", "/run", "~/run", "file:///run", "local://run", "s3:/run", Path("s3:/run"), "a:b", "C:\\run"):
        assert not is_remote(place)
    assert local_path("~/x") == here.parent / "home" / "x"
    assert local_path("x/../y") == local_path(f"file://{here}/y") == here / "y"


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("spelled", ["~/x", "x", "file", Path("~/x"), Path("x")], ids=repr)
def test_dirpath(fit: Any, here: Path, spelled: Any, snapshot: Any) -> None:
    folder = here.parent / "home" / "x" if "~" in str(spelled) else here / "x"
    callback = TrajectoryCallback(dirpath=f"file://{folder}" if spelled == "file" else spelled, snapshot=snapshot)
    fit(callback)
    assert_is(Trajectory.load(folder / NAME), callback)
    snapshots = [f"x/traj-snapshots/{path.name}" for path in (folder / "traj-snapshots").glob("*")]
    assert files_under(folder.parent) == sorted([f"x/{NAME}", *snapshots])
    assert len(snapshots) == (4 if snapshot == "full" else 0)


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("parent", ["~", "."])
def test_files_lie_beside_the_logs(fit: Any, here: Path, capsys: Any, logger: Any, parent: str) -> None:
    callback = TrajectoryCallback()
    fit(callback, logger=logger(f"{parent}/logs"))
    folder = local_path(parent) / "logs" / "lightning_logs" / "version_0"
    assert_is(Trajectory.load(folder / NAME), callback)
    assert len(list(folder.glob("metrics.csv")) + list(folder.glob("events.*"))) == 1
    hint = f"tensorboard --logdir {local_path(parent)}/logs\n"  # quoted, a ~ would not be expanded
    assert (hint in capsys.readouterr().out) == (logger is TensorBoardLogger)


def test_default_root_dir(fit: Any, here: Path) -> None:
    fit(TrajectoryCallback(), default_root_dir="~/root")
    fit(TrajectoryCallback(), default_root_dir="root")
    for folder in (here.parent / "home", here):
        assert files_under(folder) == [f"root/{NAME}"]


class Wandering(Module):
    """Changes the working directory in its second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            Path("elsewhere").mkdir(exist_ok=True)
            os.chdir("elsewhere")


class Memory(Logger):
    """Keeps what it is given; without a folder, as Lightning's base class has it."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Relative(Memory):
    log_dir = "runs"


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("place", ["dirpath", "default_root_dir", "logger"])
def test_a_changed_working_directory_changes_nothing(
    fit: Any, here: Path, capsys: Any, place: str, snapshot: Any
) -> None:
    callback = TrajectoryCallback(snapshot=snapshot, dirpath="runs" if place == "dirpath" else None)
    arguments: dict[str, Any] = {"default_root_dir": "runs"} if place == "default_root_dir" else {}
    if place == "logger":  # Lightning's own do not survive this
        arguments["logger"] = Relative()
    trainer = fit(callback, module=Wandering, **arguments)
    assert_is(Trajectory.load(here / "runs" / NAME), callback)
    assert not list((here / "elsewhere").iterdir())
    assert f"Trajectory: {here}/runs/{NAME}" in capsys.readouterr().out
    if snapshot == "full":
        assert len(list((here / "runs" / "traj-snapshots").iterdir())) == 4
        assert trainer.callbacks[-1].state_dict()["folder"] == str(here / "runs" / "traj-snapshots")


# Remote folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dirpath", "default_root_dir", CSVLogger, TensorBoardLogger])
def test_files_are_sent_to_a_remote_folder(
    fit: Any, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    draw = {"traj/map": lambda: Figure((2, 1))}  # one picture, for speed
    monkeypatch.setattr(
        "lightning_traj.loggers.trajectory.log_figures", lambda to, _, *where: LOG_FIGURES(to, draw, *where)
    )
    callback = TrajectoryCallback(dirpath="memory://there/" if how == "dirpath" else None)
    arguments: dict[str, Any] = {"default_root_dir": "memory://there"} if how == "default_root_dir" else {}
    url = "memory://there"
    if isinstance(how, type):
        arguments["logger"] = how(url)
        url = "memory://there/lightning_logs/version_0"
    fit(callback, **arguments)
    assert_is(Trajectory.load(f"{url}/{NAME}"), callback)
    assert Trajectory.load(f"{url}/{NAME}").sketches is not None  # what was saved last
    assert ("traj_map.png" in stored(url)) == (how is not TensorBoardLogger)  # which takes pictures itself
    assert files_under(here) == []
    printed = capsys.readouterr().out
    assert f"Trajectory: {url}/{NAME}" in printed
    assert ("tensorboard --logdir memory://there" in printed) == (how is TensorBoardLogger)


@pytest.mark.parametrize("copies", [True, False], ids=["copies", "neither copies nor renames"])
def test_an_earlier_remote_file_is_kept(fit: Any, copies: bool) -> None:
    Store.copies = copies
    for epochs in (1, 2, 3):
        fit(TrajectoryCallback(dirpath="store://runs"), max_epochs=epochs)
    lengths = {name: len(Trajectory.load(f"store://runs/{name}")) for name in stored("store://runs")}
    assert lengths == {"trajectory-v1.safetensors": 2, "trajectory-v2.safetensors": 3, NAME: 4}


def test_a_run_that_goes_on_replaces_its_own_file(fit: Any) -> None:
    callback = TrajectoryCallback(dirpath="store://runs")
    trainer = fit(callback)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(trainer.lightning_module, trainer.train_dataloader)
    assert stored("store://runs") == [NAME]
    assert len(Trajectory.load(f"store://runs/{NAME}")) == 6


class Released(pl.Callback):
    """Lets a store answer from the end of training on."""

    def on_train_end(self, *_: Any) -> None:
        assert Store.puts == [NAME]  # the thread still waits for the first one
        Store.gate.set()


def test_training_does_not_wait_for_a_slow_store_which_gets_the_newest_state(fit: Any) -> None:
    Store.gate.clear()
    callback = TrajectoryCallback(dirpath="store://runs", schedule=EveryNSteps(1))
    fit(Released(), callback)
    assert_is(Trajectory.load(f"store://runs/{NAME}"), callback)
    assert len(Store.puts) <= 3  # of 13 states


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failure_is_said_once_and_tried_again(fit: Any, failures: int) -> None:
    Store.failures = failures
    callback = TrajectoryCallback(dirpath="store://runs")
    with pytest.warns(UserWarning, match="sending to store://runs failed with ConnectionError") as caught:
        trainer = fit(callback)
    assert trainer.global_step == 12
    assert sum("Training goes on" in str(warning.message) for warning in caught) == 1
    assert_is(Trajectory.load(f"store://runs/{NAME}"), callback)


def test_a_store_that_is_down_for_good(fit: Any, capsys: Any) -> None:
    Store.failures = 1000
    callback = TrajectoryCallback(dirpath="store://runs")
    with pytest.warns(UserWarning, match="the store does not answer; it is tried again at each log") as caught:
        observed = fit(callback)
    assert sum("Training goes on" in str(warning.message) for warning in caught) == 1
    assert stored("store://runs") == []
    assert f"store://runs/{NAME} (its latest state could not be sent)" in capsys.readouterr().out
    torch.testing.assert_close(
        observed.lightning_module.state_dict(), fit().lightning_module.state_dict(), rtol=0, atol=0
    )


def test_the_end_of_a_fit_does_not_wait_for_ever(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.05)
    Store.gate.clear()
    with pytest.warns(UserWarning, match=rf"{NAME} could not be sent to store://runs within 0.05 s"):
        fit(TrajectoryCallback(dirpath="store://runs"))
    assert Store.puts == [NAME]  # what was still to be sent must not replace what a later run sends


def test_no_file_system_for_what_a_logger_names(fit: Any) -> None:
    class Elsewhere(Memory):
        save_dir = "nosuch://bucket"

    with pytest.warns(UserWarning, match="sending to nosuch://bucket/memory/version_0 failed .* not known: nosuch"):
        fit(TrajectoryCallback(), logger=Elsewhere())


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
def test_the_file_is_sent_when_training_breaks_off(fit: Any, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning ignores Ctrl-C from its first one on
    callback = TrajectoryCallback(dirpath="store://runs", schedule=EveryNSteps(1))
    with pytest.raises((ZeroDivisionError, SystemExit)):
        fit(callback, module=lambda: Failing(6, error))
    loaded = Trajectory.load(f"store://runs/{NAME}")
    assert_is(loaded, callback)
    assert len(loaded) == 7


def test_nothing_is_started_for_a_fast_dev_run(fit: Any) -> None:
    for snapshot, logger in itertools.product(("sketch", "full"), (False, True, MagicMock())):
        callback = TrajectoryCallback(snapshot=snapshot)
        fit(callback, default_root_dir="store://runs", fast_dev_run=True, logger=logger)
        assert len(callback.trajectory) == 2
    assert Store.puts == []
    assert not [thread for thread in threading.enumerate() if "uploads" in thread.name]


def in_ddp(root: str) -> tuple[list[str], list[str]]:
    lightning_traj.loggers.trajectory.log_figures = lambda *_: None  # type: ignore[assignment]
    started: list[str] = []
    start = threading.Thread.start
    threading.Thread.start = lambda thread: (started.append(thread.name), start(thread))[1]  # type: ignore[method-assign]
    plain_fit(TrajectoryCallback(dirpath="memory://runs"), root=Path(root), strategy="ddp", devices=2, max_epochs=2)
    return stored("memory://runs"), [name for name in started if "uploads" in name]


def test_one_process_sends(tmp_path: Path) -> None:
    first, second = launch(in_ddp, 2, str(tmp_path))
    assert first == ([NAME], ["uploads to memory://runs"])
    assert second == ([], [])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dirpath": "memory://x", "snapshot": "full"}, "dirpath='memory://x': snapshot='full' keeps .* pass a folder on"),
    ({"dirpath": Path("s3://bucket/x")}, "a Path loses a slash of a URL; pass the URL as a str"),
    ({"dirpath": "nosuch://x"}, "dirpath='nosuch://x': Protocol not known: nosuch; pass a URL whose file system"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_wrong_places(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryCallback(**arguments)


def test_full_snapshots_beside_remote_logs_are_refused_before_training(fit: Any, here: Path) -> None:
    module = Module()
    with pytest.raises(ValueError, match="the folder is memory://there: pass dirpath= a folder on this machine"):
        fit(TrajectoryCallback(snapshot="full"), module=lambda: module, default_root_dir="memory://there")
    assert not module.losses
    callback = TrajectoryCallback(snapshot="full", dirpath=here / "here")
    fit(callback, default_root_dir="memory://there")
    assert_is(Trajectory.load(here / "here" / NAME), callback)


def test_trajectories_are_read_from_urls(fit: Any, here: Path) -> None:
    callback = TrajectoryCallback()
    fit(callback, default_root_dir=here)
    for url in ("memory://some/where.safetensors", f"file://{here}/other.safetensors"):
        callback.trajectory.save(url)
        assert_is(Trajectory.load(url), callback)
    callback.trajectory.to_csv("memory://some/table.csv")
    with local_copy("memory://some/table.csv") as copy:
        assert copy.read_text().startswith("step,epoch,mds")
    with pytest.raises(FileNotFoundError, match="path='memory://no/such': no such file; pass a trajectory"):
        Trajectory.load("memory://no/such")
    with replace_atomically("memory://some/damaged") as staged:
        staged.write_bytes(b"no trajectory")
    with pytest.raises(ValueError, match="path='memory://some/damaged' cannot be read as a trajectory"):
        Trajectory.load("memory://some/damaged")


def test_remote_runs_are_compared(fit: Any, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for lr in (1, 2):
        logger = CSVLogger("memory://logs", name="runs", version=lr)
        logger.log_hyperparams({"lr": lr})
        fit(TrajectoryCallback(), logger=logger)
    fit(TrajectoryCallback(), default_root_dir=here / "local", max_epochs=2)
    urls = [f"memory://logs/runs/version_{lr}" for lr in (1, 2)]
    runs = load_runs([urls[0], f"{urls[1]}/{NAME}", here / "local"])
    assert [run.path for run in runs] == [*(f"{url}/{NAME}" for url in urls), here / "local" / NAME]
    assert [dict(run.hyperparameters) for run in runs] == [{"lr": 1}, {"lr": 2}, {}]
    monkeypatch.setattr("lightning_traj.compare.write.write_comparison", lambda *_: ["drawn elsewhere"])
    assert main(["compare", *urls, str(here / "local"), "--out", str(here / "out")]) == 0
    assert "version_1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="are the same run"):
        load_runs([urls[0], f"{urls[0]}/{NAME}"])
    with pytest.raises(FileNotFoundError, match="path='memory://nowhere': no such file or folder"):
        load_runs([urls[0], "memory://nowhere"])
    with pytest.raises(ValueError, match="holds 2 trajectories"):
        load_runs(["memory://logs/runs", urls[0]])
    assert files_in("memory://logs/runs", "*/*.yaml") == [f"{url}/hparams.yaml" for url in urls]


# Loggers ---------------------------------------------------------------------------------------------------------


class Raising(Memory):
    @property
    def log_dir(self) -> Any:
        raise ConnectionError("not logged in")


class Numbered(Memory):
    save_dir: Any = 5


class Anonymous(Memory):
    save_dir = "logs"
    name = Mock()  # type: ignore[assignment]


class Broken(Memory):
    """Nothing about it works."""

    log_dir = save_dir = Mock()
    _prefix = Mock()

    @property
    def experiment(self) -> Any:
        raise AttributeError("no experiment")


LOGGERS: dict[str, Any] = {
    "Mock": Mock,
    "MagicMock": MagicMock,
    "raising": Raising,
    "an int": Numbered,
    "a name that is none": Anonymous,
    "broken": Broken,
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_a_logger_without_a_path_does_not_stop_training(fit: Any, here: Path, kind: str) -> None:
    hybrid = HybridTraining(train="bias", when=1)
    with pytest.warns(UserWarning, match="has no folder for files") as caught:
        observed = fit(hybrid, TrajectoryCallback(), logger=[LOGGERS[kind]()], default_root_dir=here)
    said = [str(warning.message) for warning in caught if "Training goes on" in str(warning.message)]
    assert len(said) == 1
    assert f"files go to {here}, unless dirpath=" in said[0]
    assert files_under(here) == [NAME]
    alone = fit(HybridTraining(train="bias", when=1), default_root_dir=here)
    torch.testing.assert_close(
        observed.lightning_module.state_dict(), alone.lightning_module.state_dict(), rtol=0, atol=0
    )


def test_the_next_logger_with_a_folder_is_taken(fit: Any, here: Path) -> None:
    with pytest.warns(UserWarning, match=r"Raising has no folder for files: not logged in; files go to .*version_0"):
        fit(TrajectoryCallback(), logger=[Raising(), CSVLogger("csv")])
    assert (here / "csv" / "lightning_logs" / "version_0" / NAME).is_file()


def test_a_logger_that_keeps_nothing_on_disk_is_no_reason_to_warn(fit: Any, here: Path) -> None:
    fit(TrajectoryCallback(), logger=Memory(), default_root_dir=here)  # warnings are errors
    assert files_under(here) == [NAME]


def test_paths_of_other_kinds_are_taken(fit: Any, here: Path) -> None:
    class Own:
        def __fspath__(self) -> str:
            return "own"

        __str__ = __fspath__

    class Elsewhere(Memory):
        save_dir: Any = Own()

    fit(TrajectoryCallback(), logger=Elsewhere())
    assert files_under(here) == [f"own/memory/version_0/{NAME}"]


def test_loggers_are_called_with_keywords(fit: Any) -> None:
    logger = Memory()
    fit(TrajectoryCallback(), HybridTraining(when=1, train="bias"), logger=logger)
    assert {(len(args), *sorted(kwargs)) for args, kwargs in logger.calls} == {(0, "metrics", "step")}
    logged = {tag for _, kwargs in logger.calls for tag in kwargs["metrics"]}
    assert {"traj/mds", "traj_hybrid/trained_share"} <= logged


class Failed(TensorBoardLogger):
    """Its connection breaks once training has begun."""

    broken = False

    @property
    def experiment(self) -> Any:
        if self.broken:
            raise ConnectionError("gone")
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.broken = True

    def finalize(self, status: str) -> None:
        pass


def test_an_experiment_that_breaks_stops_nothing(fit: Any) -> None:
    table = Memory()
    trainer = fit(TrajectoryCallback(), logger=[Failed("logs"), table])
    assert trainer.global_step == 12
    assert any("traj/mds" in kwargs["metrics"] for _, kwargs in table.calls)
