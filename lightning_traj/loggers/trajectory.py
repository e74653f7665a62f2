"""Logging of trajectories: scalars to every logger, pictures to the loggers that take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any

from lightning_traj.files import Folder, LocalFolder
from lightning_traj.loggers.attempts import attempt_all
from lightning_traj.loggers.registry import adapter_of, for_each
from lightning_traj.measures import shown_in
from lightning_traj.trajectory import attention, grouped, latest, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_traj.trajectory import Trajectory

Where = Folder | str | PathLike[str] | None


def log_trajectory(
    loggers: Sequence[Any],
    trajectory: Trajectory,
    summary: Mapping[str, float],
    step: int,
    *,
    prefix: str = "traj",
    folder: Where = None,
    pictures: bool = True,
) -> None:
    """Log the newest values (``traj/mds``), their standard errors (``traj_stderr/mds``), and the pictures.

    Scalars by role (``traj_layers/mds/q``) are logged too; their number does not grow with the number of layers.

    Args:
        loggers: Loggers of the Trainer; there may be none.
        trajectory: The trajectory. Standard errors and pictures are computed from it.
        summary: Values by measure, as from ``trajectory.summary()``. Undefined values are left out.
        step: Position on the x axis.
        prefix: First part of the tags.
        folder: Folder for pictures as PNG files (``traj_map.png``, …) if no logger takes them. None writes no files.
        pictures: Whether to draw pictures this time. They take most of the time.

    Raises:
        Exception: The first error of a logger or a picture, after all others have been served.
    """
    from lightning_traj.plots import trajectory as plot  # matplotlib is slow to import

    errors = trajectory.standard_errors()
    scalars = {f"{prefix}/{name}": value for name, value in summary.items()}
    scalars |= {f"{prefix}_stderr/{name}": error for name, error in errors.items()}
    figures: dict[str, Callable[[], Figure]] = {
        f"{prefix}/map": lambda: plot.trajectory_map(trajectory, errors=errors),
        f"{prefix}/relative_map": lambda: plot.relative_map(trajectory, errors=errors),
        f"{prefix}/path": lambda: plot.path(trajectory),
    }
    scalars |= {f"{prefix}_layers/{name}": value for name, value in layer_scalars(trajectory).items()}
    attempt_all(
        [
            lambda: log_scalars(loggers, scalars, step),
            lambda: log_figures(loggers, figures if pictures else {}, step, folder),
        ]
    )


def log_history(loggers: Sequence[Any], trajectory: Trajectory, *, prefix: str = "traj") -> None:
    """Log a finished trajectory: its values at each kept snapshot, and all pictures at the last one.

    Args:
        loggers: Loggers to log to.
        trajectory: The trajectory. Its steps are the positions on the x axis.
        prefix: First part of the tags.

    Raises:
        Exception: The first error of a logger or a picture, after all others have been served.
    """
    series = {f"{prefix}/{name}": values for name, values in trajectory.series().items()}
    roles = grouped(trajectory, "role")
    for measure in shown_in("role") if len(roles) > 1 else ():
        names, values = progress(trajectory, measure, roles)
        series |= {f"{prefix}_layers/{measure}/{role}": row for role, row in zip(names, values, strict=True)}
    for i, step in enumerate(trajectory.steps.tolist()[:-1]):
        log_scalars(loggers, {tag: values[i] for tag, values in series.items()}, step)
    log_trajectory(loggers, trajectory, trajectory.summary(), int(trajectory.steps[-1]), prefix=prefix)


def log_layers(
    loggers: Sequence[Any],
    trajectory: Trajectory,
    step: int,
    *,
    prefix: str = "traj",
    folder: Where = None,
) -> None:
    """Log the pictures by layer and role (``traj_layers/mds``), at most nine. Arguments as for ``log_trajectory``."""
    from lightning_traj.plots import layer_figures

    figures = {f"{prefix}_layers/{name}": draw for name, draw in layer_figures(trajectory).items()}
    log_figures(loggers, figures, step, folder)


def layer_scalars(trajectory: Trajectory) -> dict[str, float]:
    """Return measures by role (``mds/q``) if there are several, and the mean and largest heterogeneity of q, k, v."""
    scalars: dict[str, float] = {}
    roles = grouped(trajectory, "role")
    if len(roles) > 1:
        for measure in shown_in("role"):
            scalars |= {f"{measure}/{role}": value for role, value in latest(trajectory, measure, roles).items()}
    spread = [module["heterogeneity"] for module in attention(trajectory).values()]
    if spread := [value for value in spread if isfinite(value)]:
        scalars |= {"heterogeneity_mean": sum(spread) / len(spread), "heterogeneity_max": max(spread)}
    return scalars


def log_scalars(loggers: Sequence[Any], values: Mapping[str, float], step: int) -> None:
    """Log the finite values to every logger."""
    finite = {tag: float(value) for tag, value in values.items() if isfinite(value)}
    if finite:
        for_each(loggers, lambda adapter: adapter.log_scalars(finite, step))


def log_text(loggers: Sequence[Any], tag: str, text: str, step: int) -> None:
    """Log Markdown to the loggers that take it."""
    for_each(loggers, lambda adapter: adapter.log_text(tag, text, step))


def log_figures(
    loggers: Sequence[Any],
    figures: Mapping[str, Callable[[], Figure]],
    step: int,
    folder: Where = None,
) -> None:
    """Log figures by tag to every logger that takes pictures; if there is none, as PNG files in ``folder``.

    A figure is drawn once, and not at all if it has nowhere to go.
    """
    from lightning_traj.plots import save_png, to_rgb

    takers = [adapter for adapter in map(adapter_of, loggers) if adapter.takes_pictures]
    place = folder if folder is None or isinstance(folder, Folder) else LocalFolder(folder)

    def show(tag: str, draw: Callable[[], Figure]) -> None:
        if takers:
            pixels = to_rgb(draw())
            attempt_all(partial(taker.log_picture, tag, pixels, step) for taker in takers)
        elif place is not None:
            place.write(f"{tag.replace('/', '_')}.png", partial(save_png, draw()))

    attempt_all(partial(show, tag, draw) for tag, draw in figures.items())


def event_folders(loggers: Sequence[Any]) -> list[str]:
    """Return the folders that TensorBoard should be pointed at, as absolute paths or URLs."""
    folders = set()
    for logger in loggers:
        with suppress(Exception):  # properties of a logger may raise anything
            folders.add(adapter_of(logger).event_folder())
    return sorted(folder for folder in folders if folder)
