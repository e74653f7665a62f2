"""What reaches which logger; TensorBoard's side is read from its event files, by TensorBoard's own code."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from event_files import events, hparams, provider
from lightning_traj import loggers as tensorboard
from lightning_traj.measures.catalogue import MEASURES, shown_in
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.trajectory.trajectory import Trajectory

# Imported by TensorBoard's plugins, and so by these tests in their functions, where this applies.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]


class Memory(Logger):
    """Keeps what it is given, or fails; the simplest of loggers."""

    name, version = "memory", 0

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.metrics: list[tuple[dict[str, float], int | None]] = []
        self.images: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("columns are TensorBoard's business")


class Gallery(Memory):
    """Takes pictures as W&B's logger does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.images[key] = (images, step)


@pytest.fixture
def trajectory() -> Trajectory:
    recorder = Recorder(RecordingSettings(sketch_dim=16))
    rng = np.random.default_rng(0)
    for t, row in enumerate(10 + np.cumsum(rng.standard_normal((6, 100)), axis=0)):
        recorder.record({"w": torch.tensor(row)}, 10 * t, t)
    return recorder.collect()[0]


def fit(folder: Path, names: tuple[str, ...] = ("traj",), namespace: str = NAMESPACES[0], **settings: Any) -> Path:
    """A real run with a callback that logs a made-up MDS, falling from 1; returns the folder of its logs."""
    lightning = importlib.import_module(namespace)
    announce: dict[str, float] = settings.pop("announce", {})
    save: bool = settings.pop("save", True)

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, rate: float = 0.1, sizes: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters(logger=save)
            self.layer = torch.nn.Linear(1, 1)

        def on_train_start(self) -> None:
            if announce:
                self.logger.log_hyperparams(dict(self.hparams), announce)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.layer(torch.ones(1)).square().sum()

        def on_train_epoch_end(self) -> None:
            self.log("accuracy", self.current_epoch / 4)
            self.log("hp_metric", self.current_epoch / 8)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), self.hparams["rate"])

    class Callback(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.chosen = tensorboard.hyperparameters(pl_module, trainer.datamodule)
            tensorboard.add_layout(trainer.loggers, names)
            tensorboard.log_hyperparameters(trainer.loggers, self.chosen, names)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            values = {f"{name}/mds": 1 - trainer.current_epoch / 10 for name in names}
            tensorboard.log_scalars(trainer.loggers, values, trainer.global_step - 1)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            tensorboard.log_hyperparameters(trainer.loggers, self.chosen, names, finished=True)

    loggers = importlib.import_module(f"{namespace}.loggers")
    trainer = lightning.Trainer(
        logger=loggers.TensorBoardLogger(folder, name="", **settings),
        callbacks=[Callback()],
        max_epochs=3,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Model(rate=0.05, sizes={"width": 3}), [1, 2])
    return Path(trainer.logger.log_dir)


# Scalars and pictures


def test_log_trajectory_reaches_tensorboard(tmp_path: Path, trajectory: Trajectory) -> None:
    logger = TensorBoardLogger(tmp_path)
    tensorboard.log_trajectory([logger], trajectory, trajectory.summary(), 41, folder=tmp_path / "pictures")
    logger.finalize("success")
    found = events(logger.log_dir)
    summary, errors = trajectory.summary(), trajectory.standard_errors()
    expected = {f"traj/{name}": value for name, value in summary.items() if math.isfinite(value)}
    expected |= {f"traj_stderr/{name}": error for name, error in errors.items()}
    assert set(found.Tags()["scalars"]) == set(expected)
    assert "traj/oscillation_cosine" not in expected  # undefined here
    for tag, value in expected.items():
        (event,) = found.Scalars(tag)
        assert (event.step, event.value) == (41, pytest.approx(value, rel=1e-6))
    assert set(found.Tags()["images"]) == {"traj/map", "traj/relative_map", "traj/path"}
    (image,) = found.Images("traj/map")
    assert (image.step, image.width, image.height) == (41, 500, 400)
    assert not (tmp_path / "pictures").exists()


def test_every_logger_gets_scalars_and_pictures_are_drawn_once(trajectory: Trajectory, tmp_path: Path) -> None:
    drawn = []

    def draw() -> Figure:
        drawn.append(1)
        return Figure((2, 1), dpi=100)

    loggers = [CSVLogger(tmp_path), Gallery(), TensorBoardLogger(tmp_path / "tb"), Memory(), DummyLogger()]
    tensorboard.log_scalars(loggers, {"traj/mds": 0.5, "traj/turn": float("nan"), "traj/x": float("inf")}, 7)
    tensorboard.log_figures(loggers, {"traj/map": draw}, 7, tmp_path / "pictures")
    assert loggers[3].metrics == [({"traj/mds": 0.5}, 7)]
    assert loggers[0].experiment.metrics == [{"traj/mds": 0.5, "step": 7}]
    ((pixels,), step) = loggers[1].images["traj/map"]
    assert (pixels.shape, pixels.dtype, step) == ((100, 200, 3), np.uint8, 7)
    assert drawn == [1]
    assert not (tmp_path / "pictures").exists()
    loggers[2].finalize("success")
    assert events(loggers[2].log_dir).Tags()["images"] == ["traj/map"]


def test_pictures_become_files_where_no_logger_takes_them(tmp_path: Path, trajectory: Trajectory) -> None:
    for number, loggers in enumerate(([], [Memory()], [CSVLogger(tmp_path)])):
        folder = tmp_path / str(number)
        tensorboard.log_trajectory(loggers, trajectory, trajectory.summary(), 1, prefix="late", folder=folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "late_map.png",
            "late_path.png",
            "late_relative_map.png",
        ]


def test_nothing_is_left_behind_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensorboard.log_figures([DummyLogger()], {"traj/map": lambda: pytest.fail("drawn for nobody")}, 1)
    tensorboard.add_layout([DummyLogger()])
    tensorboard.log_hyperparameters([DummyLogger(), Memory()], {"rate": 0.1})
    assert not list(tmp_path.iterdir())


def test_a_failing_logger_keeps_nothing_from_the_others(trajectory: Trajectory) -> None:
    first, last = Gallery(), Gallery()
    with pytest.raises(ConnectionError, match="no network"):
        tensorboard.log_trajectory([first, Gallery(fails=True), last], trajectory, trajectory.summary(), 3)
    for logger in (first, last):
        assert [step for _, step in logger.metrics] == [3]
        assert set(logger.images) == {"traj/map", "traj/relative_map", "traj/path"}


def test_a_failing_picture_keeps_nothing_from_the_others() -> None:
    def fail() -> Figure:
        raise MemoryError("no room")

    logger = Gallery()
    with pytest.raises(MemoryError):
        tensorboard.log_figures([logger], {"traj/map": fail, "traj/path": Figure}, 3)
    assert set(logger.images) == {"traj/path"}


# By layer and role


def transformer(depth: int, n: int = 4) -> Trajectory:
    rng = np.random.default_rng(depth)
    names = [f"h.{i}.attn.{role}_proj.weight" for i in range(depth) for role in "qkv"]
    names += [f"h.{i}.ln.weight" for i in range(depth)]
    recorder, theta = Recorder(RecordingSettings(sketch_dim=16)), rng.standard_normal((len(names), 9))
    for t in range(n):
        snapshot = {name: torch.tensor(row) for name, row in zip(names, theta, strict=True)}
        recorder.record(snapshot, 10 * t, t)
        recorder.windows.begin(snapshot, 10 * t)
        for step in (1, 2):
            moved = {name: tensor + step * torch.rand(tensor.shape) for name, tensor in snapshot.items()}
            recorder.windows.add(moved, 10 * t + step)
        recorder.windows.end(10 * t + step)
        theta = theta + 0.3 * rng.standard_normal(theta.shape)
    return recorder.collect()[0]


def logged(trajectory: Trajectory, **settings: Any) -> tuple[dict[str, float], set[str]]:
    logger = Gallery()
    tensorboard.log_trajectory([logger], trajectory, trajectory.summary(), 3, **settings)
    tensorboard.log_layers([logger], trajectory, 3, prefix=settings.get("prefix", "traj"))
    ((scalars, _),) = logger.metrics
    return scalars, set(logger.images)


def by_layer(tags: Any) -> set[str]:
    return {tag for tag in tags if "_layers/" in tag}


def test_scalars_by_role_are_those_of_the_roles() -> None:
    trajectory = transformer(3)
    scalars, pictures = logged(trajectory, prefix="late")
    table = trajectory.table("role")
    roles = {"q", "k", "v", "norm"}
    for measure in ("mds", "direction_drift"):
        for role in roles:
            assert scalars[f"late_layers/{measure}/{role}"] == pytest.approx(table[role][measure])
    similarity = {(i, role): trajectory.summary(f"h.{i}.attn.{role}_proj.*")["mds"] for i in range(3) for role in "qkv"}
    spread = [np.ptp([similarity[i, role] for role in "qkv"]) for i in range(3)]
    assert scalars["late_layers/heterogeneity_mean"] == pytest.approx(np.mean(spread))
    assert scalars["late_layers/heterogeneity_max"] == pytest.approx(max(spread))
    assert len(by_layer(scalars)) == 2 * len(roles) + 2
    assert by_layer(pictures) == {
        f"late_layers/{name}" for name in (*shown_in("heatmap"), "roles", "heterogeneity", "different", "role_maps")
    }
    assert len(pictures) <= 12


def test_tags_do_not_multiply_with_layers() -> None:
    few, many = logged(transformer(3)), logged(transformer(60))
    assert few[0].keys() == many[0].keys()
    assert few[1] == many[1]


def test_every_tag_by_layer_has_its_chart(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", prefix="big")
    tensorboard.add_layout([logger])
    logger.finalize("success")
    charts = layout(tmp_path)["traj: Layers and roles"]
    for tag in by_layer(logged(transformer(3))[0]):
        assert sum(bool(re.search(chart, f"big-{tag}")) for (chart,) in charts.values()) == 1


def test_what_is_by_layer_is_left_out_where_it_is_not_wanted_or_says_nothing(trajectory: Trajectory) -> None:
    several = transformer(3)
    scalars, pictures = logged(trajectory)
    assert by_layer(scalars) == by_layer(pictures) == set()
    assert by_layer(logged(several, pictures=False)[0]) == by_layer(logged(several)[0])
    assert logged(several, pictures=False)[1] == by_layer(logged(several)[1])
    one = logged(transformer(3, n=1))
    assert by_layer(one[1]) == set()
    assert not any("direction_drift" in tag for tag in one[0])


# Custom scalars


def layout(folder: Path) -> dict[str, dict[str, list[str]]]:
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    plugin = CustomScalarsPlugin(TBContext(data_provider=provider(folder)))
    found = json.loads(json.dumps(plugin.layout_impl(RequestContext(), "")))
    found = json.loads(found) if isinstance(found, str) else found
    return {
        category["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
        for category in found.get("category", [])
    }


def test_layout_has_each_measure_once_in_its_group(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="")
    tensorboard.add_layout([logger, CSVLogger(tmp_path / "csv")], ["traj", "late"])
    logger.finalize("success")
    charts = layout(tmp_path)
    assert charts.pop("Angles between quantities") == {"degrees": ["^traj_cross/"]}
    groups = dict.fromkeys(measure.group for measure in MEASURES.values())
    assert list(charts) == [f"{p}: {group}" for p in ("traj", "late") for group in (*groups, "Layers and roles")]
    assert charts["traj: Direction"]["mds, mds_relative"] == ["^traj/mds$", "^traj/mds_relative$"]
    by_layer = {p: charts.pop(f"{p}: Layers and roles") for p in ("traj", "late")}
    assert by_layer["late"] == {
        "mds by role": ["^late_layers/mds/[^/]+$"],
        "direction_drift by role": ["^late_layers/direction_drift/[^/]+$"],
        "q, k, v heterogeneity": ["^late_layers/heterogeneity_(mean|max)$"],
    }
    patterns = [tag for category in charts.values() for tags in category.values() for tag in tags]
    assert sorted(patterns) == sorted(f"^{p}/{name}$" for p in ("traj", "late") for name in MEASURES)


def test_a_layout_of_the_users_wins(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="")
    tensorboard.add_layout([logger])
    logger.experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})
    logger.finalize("success")
    assert layout(tmp_path) == {"mine": {"loss": ["loss"]}}


# Hyperparameters

COLUMNS = [f"traj/{name}" for name, measure in MEASURES.items() if measure.group != "Oscillation"]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_final_values_stand_beside_the_hyperparameters(tmp_path: Path, namespace: str) -> None:
    log_dir = fit(tmp_path, namespace=namespace)
    parameters, columns, runs = hparams(tmp_path)
    assert set(parameters) == {"rate", "sizes/width"}
    assert columns == ["hp_metric", *COLUMNS]
    assert runs == [{"hp_metric": 0.25, "traj/mds": pytest.approx(0.8)}]
    # No point but those of the run: columns are announced without values.
    found = events(log_dir)
    assert [(event.step, round(event.value, 3)) for event in found.Scalars("traj/mds")] == [
        (1, 1.0),
        (3, 0.9),
        (5, 0.8),
    ]
    assert {tag for tag in found.Tags()["scalars"] if "/" in tag} == {"traj/mds"}
    assert [event.value for event in found.Scalars("hp_metric")] == [
        -1.0,
        0,
        0.125,
        0.25,
    ]  # Lightning's, and the user's


def test_without_placeholder_the_columns_are_ours(tmp_path: Path) -> None:
    fit(tmp_path, default_hp_metric=False)
    parameters, columns, runs = hparams(tmp_path)
    assert set(parameters) == {"rate", "sizes/width"}
    assert columns == COLUMNS
    assert runs == [{"traj/mds": pytest.approx(0.8)}]


def test_metrics_that_the_module_announces_are_not_hidden(tmp_path: Path) -> None:
    fit(tmp_path, default_hp_metric=False, announce={"accuracy": 0.0, "traj/mds": 1.0})
    _, columns, runs = hparams(tmp_path)
    assert columns == ["accuracy", "traj/mds"]
    assert runs == [{"accuracy": 0.5, "traj/mds": pytest.approx(0.8)}]


def test_two_callbacks_have_their_columns(tmp_path: Path) -> None:
    fit(tmp_path, names=("traj", "late"))
    _, columns, runs = hparams(tmp_path)
    assert columns == ["hp_metric", *COLUMNS, *(column.replace("traj/", "late/") for column in COLUMNS)]
    assert runs[0].keys() == {"hp_metric", "traj/mds", "late/mds"}


def test_a_loggers_prefix_is_part_of_every_tag(tmp_path: Path) -> None:
    fit(tmp_path, prefix="big")
    _, columns, runs = hparams(tmp_path)
    assert columns == ["hp_metric", *(f"big-{column}" for column in COLUMNS)]
    assert runs[0]["big-traj/mds"] == pytest.approx(0.8)
    assert layout(tmp_path)["traj: Direction"]["mds, mds_relative"][0] == r"^big\-traj/mds$"


def test_nothing_where_no_hyperparameters_were_logged(tmp_path: Path) -> None:
    fit(tmp_path, save=False)
    assert hparams(tmp_path) == ([], [], [])


def test_hyperparameters_are_those_that_lightning_logs() -> None:
    class Owner:
        def __init__(self, logs: bool, **values: Any) -> None:
            self._log_hyperparams, self.hparams_initial = logs, values

    module = Owner(True, rate=0.1, _class_path="my.Model")
    assert tensorboard.hyperparameters(module, None) == {"rate": 0.1}
    assert tensorboard.hyperparameters(module, Owner(True, batch=3)) == {"rate": 0.1, "batch": 3}
    assert tensorboard.hyperparameters(Owner(False, rate=0.1), object()) == {}


def test_versions_are_numbered_as_without_us(tmp_path: Path) -> None:
    """A writer makes its folder when first asked for, and folders number versions: the loggers' order decides."""
    for number, kinds in enumerate(((CSVLogger, TensorBoardLogger), (TensorBoardLogger, CSVLogger))):
        plain, ours = ([kind(tmp_path / f"{name}{number}") for kind in kinds] for name in ("plain", "ours"))
        for logger in plain:
            logger.save()  # as Lightning does before training
            _ = logger.experiment
        tensorboard.log_hyperparameters(ours, {"rate": 0.1})
        assert [logger.version for logger in ours] == [logger.version for logger in plain]
        for logger in (*plain, *ours):
            logger.finalize("success")


# Folders


def test_log_folder_is_that_of_the_first_logger_with_one(tmp_path: Path) -> None:
    class Elsewhere(Memory):
        save_dir = str(tmp_path / "elsewhere")

    board, table = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    assert tensorboard.log_folder([]) is None
    assert tensorboard.log_folder([DummyLogger(), Memory()]) is None
    assert tensorboard.log_folder([Memory(), board, table]) == board.log_dir
    assert tensorboard.log_folder([table, board]) == table.log_dir
    assert tensorboard.log_folder([Elsewhere()]) == str(tmp_path / "elsewhere" / "memory" / "version_0")
    assert not list(tmp_path.iterdir())


def test_loggers_stay_as_they_were(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    before = set(vars(logger))
    tensorboard.add_layout([logger])
    tensorboard.log_hyperparameters([logger], {"rate": 0.1})
    assert set(vars(logger)) == before
    assert pickle.loads(pickle.dumps(logger)).log_dir == logger.log_dir
    logger.finalize("success")
