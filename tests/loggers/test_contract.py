"""The contract that the adapter of every kind of logger keeps (see ``LoggerAdapter``)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from event_files import events
from lightning_traj.loggers.adapter import LoggerAdapter
from lightning_traj.loggers.images import ImageAdapter
from lightning_traj.loggers.registry import ADAPTERS, adapter_of
from lightning_traj.loggers.tensorboard import TensorBoardAdapter

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

PIXELS = np.zeros((4, 6, 3), dtype=np.uint8)


class Gallery(Logger):
    """Takes scalars and pictures as W&B's logger does."""

    name, version = "gallery", 0

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, tuple[int | None, float]] = {}
        self.pictures: dict[str, int | None] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars |= {tag: (step, value) for tag, value in metrics.items()}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("no adapter of this logger has a use for it")

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert [image.shape for image in images] == [PIXELS.shape]
        self.pictures[key] = step


class Kind(NamedTuple):
    """How the tests of the contract make a logger of a kind, and read what it was given."""

    make: Callable[[Path], Any]
    scalars: Callable[[Any], dict[str, tuple[int | None, float]]]
    pictures: Callable[[Any], dict[str, int | None]]


def in_table(logger: CSVLogger) -> dict[str, tuple[int | None, float]]:
    with Path(logger.experiment.metrics_file_path).open() as file:
        rows = list(csv.DictReader(file))
    return {tag: (int(row["step"]), float(row[tag])) for row in rows for tag in row if tag != "step"}


def in_events(logger: TensorBoardLogger) -> dict[str, tuple[int | None, float]]:
    found = events(logger.log_dir)
    return {tag: (event.step, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)}


def pictures_in_events(logger: TensorBoardLogger) -> dict[str, int | None]:
    found = events(logger.log_dir)
    return {tag: event.step for tag in found.Tags()["images"] for event in found.Images(tag)}


KINDS: dict[type[LoggerAdapter], Kind] = {
    LoggerAdapter: Kind(CSVLogger, in_table, lambda logger: {}),
    ImageAdapter: Kind(lambda _: Gallery(), lambda logger: logger.scalars, lambda logger: logger.pictures),
    TensorBoardAdapter: Kind(TensorBoardLogger, in_events, pictures_in_events),
}


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.__name__)
def kind(request: pytest.FixtureRequest) -> type[LoggerAdapter]:
    assert request.param in KINDS, "add a logger of the new kind to KINDS"
    return request.param


@pytest.fixture
def logger(kind: type[LoggerAdapter], tmp_path: Path) -> Any:
    return KINDS[kind].make(tmp_path)


def test_a_logger_gets_the_adapter_of_its_kind(kind: type[LoggerAdapter], logger: Any) -> None:
    assert type(adapter_of(logger)) is kind


def test_scalars_arrive_with_their_step(kind: type[LoggerAdapter], logger: Any) -> None:
    adapter_of(logger).log_scalars({"traj/mds": 0.5, "traj_layers/mds/q": 0.25}, 7)
    logger.finalize("success")
    assert KINDS[kind].scalars(logger) == {"traj/mds": (7, 0.5), "traj_layers/mds/q": (7, 0.25)}


def test_values_that_are_passed_stay_as_they_are(logger: Any) -> None:
    values = {"traj/mds": 0.5}
    adapter_of(logger).log_scalars(values, 7)
    assert values == {"traj/mds": 0.5}


def test_pictures_arrive_with_their_step_where_they_are_taken(kind: type[LoggerAdapter], logger: Any) -> None:
    adapter = adapter_of(logger)
    adapter.log_scalars({"traj/mds": 0.5}, 7)
    adapter.log_picture("traj/map", PIXELS, 7)
    logger.finalize("success")
    assert KINDS[kind].pictures(logger) == ({"traj/map": 7} if adapter.takes_pictures else {})


def test_what_a_kind_has_no_place_for_is_ignored(logger: Any) -> None:
    adapter = adapter_of(logger)
    adapter.log_text("traj/events", "*frozen*", 7)
    adapter.add_layout(["traj", "late"])
    adapter.announce_columns({"rate": 0.1}, ["traj", "late"], finished=False)
    assert isinstance(adapter.event_folder(), str | None)
    logger.finalize("success")


class Unwilling(Logger):
    """Raises whatever it is asked for, but takes scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(name)

    @property
    def experiment(self) -> Any:
        raise ConnectionError("no network")

    @property
    def name(self) -> str:
        raise ConnectionError("no name")

    version = log_dir = save_dir = name

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")


@pytest.mark.parametrize("odd", [DummyLogger, MagicMock, Unwilling, object], ids=lambda odd: odd.__name__)
def test_odd_loggers_have_the_plain_adapter(odd: Any) -> None:
    """Asking what kind they are of raises nothing, and no picture is drawn for them."""
    for kind in ADAPTERS:
        assert kind.fits(odd()) is (kind is LoggerAdapter)
    assert not adapter_of(odd()).takes_pictures


def test_the_plainest_of_loggers_gets_its_scalars() -> None:
    logger = Unwilling()
    adapter_of(logger).log_scalars({"traj/mds": 0.5}, 7)
    assert logger.metrics == [({"traj/mds": 0.5}, 7)]


def test_a_tensorboard_logger_may_have_its_own_way_with_pictures(tmp_path: Path) -> None:
    class Both(TensorBoardLogger):
        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            self.taken = key, len(images), step

    logger = Both(tmp_path)
    adapter_of(logger).log_picture("traj/map", PIXELS, 7)
    logger.finalize("success")
    assert logger.taken == ("traj/map", 1, 7)
    assert pictures_in_events(logger) == {}
