"""Results of an analysis of checkpoints in one folder: a report, and the files that the callback leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from lightning_traj import loggers
from lightning_traj.files import replace_together
from lightning_traj.plots import save_png
from lightning_traj.plots import trajectory as plot
from lightning_traj.report import trajectory_report
from lightning_traj.trajectory import CheckpointSource, Trajectory

EVENTS = "tensorboard"
TRAJECTORY = "trajectory.safetensors"
RESULTS = (
    "report.html",
    TRAJECTORY,
    "trajectory.csv",
    "map.png",
    "relative_map.png",
    "path.png",
    "overview.png",
    EVENTS,
)


def write_analysis(
    trajectory: Trajectory, out: str | PathLike[str], *, csv: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write ``report.html``, ``trajectory.safetensors``, figures as PNG, and events for TensorBoard: all or nothing.

    Args:
        trajectory: Trajectory of ``from_checkpoints``.
        out: Folder for the results; it is made if it is missing.
        csv: Whether to write ``trajectory.csv`` too, a row a checkpoint and a column a measure.
        overwrite: Whether the results of an earlier analysis in ``out`` may be replaced, all of them.

    Returns:
        The files and folders, the report first.

    Raises:
        FileExistsError: There are results already, or a trajectory that was recorded in training.
        OSError: A file could not be written.
    """
    out = Path(out)
    present = [name for name in RESULTS if (out / name).exists()]
    if present and not overwrite:
        raise FileExistsError(f"{out} has {', '.join(present)} already: name another folder, or pass overwrite=True.")
    if TRAJECTORY in present and Trajectory.load(out / TRAJECTORY).provenance.source is None:
        raise FileExistsError(f"{out / TRAJECTORY} was recorded in training, and is not replaced: name another folder.")
    with replace_together(out, present) as folder:
        _write(trajectory, folder, csv)
        made = [name for name in RESULTS if (folder / name).exists()]
    return [out / name for name in made]


def _write(trajectory: Trajectory, out: Path, csv: bool) -> None:
    trajectory.save(out / TRAJECTORY)
    if csv:
        trajectory.to_csv(out / "trajectory.csv")
    errors = trajectory.standard_errors()
    figures = {
        "map": plot.trajectory_map(trajectory, errors=errors),
        "relative_map": plot.relative_map(trajectory, errors=errors),
        "path": plot.path(trajectory),
        "overview": plot.overview(trajectory, errors=errors),
    }
    for name, figure in figures.items():
        save_png(figure, out / f"{name}.png")
    _write_events(trajectory, out)
    source = trajectory.provenance.source or CheckpointSource()
    report = trajectory_report(
        trajectory,
        title=f"Trajectory of {_common_folder(source.paths).name}",
        source={
            "checkpoints": _span(source.paths),
            "weights": "averaged" if trajectory.provenance.track == "average" else "as they were trained",
            "left out (buffers)": source.left_out or "nothing",
        },
    )
    (out / "report.html").write_text(report, encoding="utf-8")


def _write_events(trajectory: Trajectory, out: Path) -> None:
    """Write the same charts and pictures as in training."""
    logger = _Events(out / EVENTS)
    loggers.add_layout([logger])
    loggers.log_history([logger], trajectory)
    loggers.log_layers([logger], trajectory, int(trajectory.steps[-1]))
    logger.experiment.close()


class _Events:
    """Logger of TensorBoard events as ``log_trajectory`` takes it, without the import of Lightning."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.experiment = SummaryWriter(str(folder))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for tag, value in metrics.items():
            self.experiment.add_scalar(tag, value, step)


def _common_folder(paths: Sequence[str]) -> Path:
    """Return the folder of the checkpoints, or the one above if it is called ``checkpoints``."""
    folder = Path(paths[0]).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _span(paths: Sequence[str]) -> str:
    return f"{len(paths)}, {paths[0]} … {paths[-1]}"
