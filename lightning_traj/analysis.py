"""The results of an analysis of checkpoints: what the callback leaves behind, and a report, in one folder."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from lightning_traj import plot, tensorboard
from lightning_traj.files import replace_atomically
from lightning_traj.html import trajectory_report
from lightning_traj.trajectory import Trajectory

EVENTS = "tensorboard"


def write_analysis(trajectory: Trajectory, out: str | PathLike[str], *, csv: bool = False) -> list[Path]:
    """Write ``report.html``, ``trajectory.safetensors``, figures as PNG, and events for TensorBoard.

    Args:
        trajectory: As ``from_checkpoints`` gives it.
        out: Folder, made if it is missing. Files of these names in it are replaced.
        csv: Write ``trajectory.csv`` too: a row a checkpoint, a column a measure.

    Returns:
        The files, the report first.

    Raises:
        OSError: a file could not be written.
    """
    out = Path(out)
    trajectory.save(out / "trajectory.safetensors")
    written = [out / "trajectory.safetensors"]
    if csv:
        trajectory.to_csv(out / "trajectory.csv")
        written.append(out / "trajectory.csv")
    errors = trajectory.standard_errors()
    figures = {
        "map": plot.trajectory_map(trajectory, errors=errors),
        "relative_map": plot.relative_map(trajectory, errors=errors),
        "path": plot.path(trajectory),
        "overview": plot.overview(trajectory, errors=errors),
    }
    for name, figure in figures.items():
        plot.save_png(figure, out / f"{name}.png")
        written.append(out / f"{name}.png")
    written += _write_events(trajectory, out)
    settings = trajectory.settings
    report = trajectory_report(
        trajectory,
        title=f"Trajectory of {_common_folder(settings['checkpoints']).name}",
        source={"checkpoints": _span(settings["checkpoints"]), "no parameters": settings["left_out"] or "none"},
        findings=settings["findings"],
    )
    with replace_atomically(out / "report.html") as temporary:
        temporary.write_text(report, encoding="utf-8")
    return [out / "report.html", *written]


def _write_events(trajectory: Trajectory, out: Path) -> list[Path]:
    """The same charts and pictures as in training; they take the place of earlier ones, or both would be drawn."""
    for earlier in (out / EVENTS).glob("events.out.tfevents.*"):
        earlier.unlink()
    logger = TensorBoardLogger(out, name=None, version=EVENTS, default_hp_metric=False)
    tensorboard.add_layout([logger])
    tensorboard.log_history([logger], trajectory)
    tensorboard.log_layers([logger], trajectory, int(trajectory.steps[-1]))
    logger.experiment.close()
    return sorted((out / EVENTS).glob("events.out.tfevents.*"))


def _common_folder(paths: list[str]) -> Path:
    """The folder that holds all checkpoints, seen from where they are not called so."""
    folder = Path(paths[0]).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _span(paths: list[str]) -> str:
    return f"{len(paths)}, {paths[0]} … {paths[-1]}"
