"""What of a trajectory goes to which logger, and how it looks there.

Scalars go to every logger, pictures to those that take them. TensorBoard is told besides how to group the charts,
and which values belong beside the hyperparameters. Loggers are told apart by what they can do, not by type: those
of ``lightning.pytorch`` and of ``pytorch_lightning`` are different classes, and there are others.

A logger that fails keeps nothing from the others: the first error is raised when all have had theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any

from lightning_traj.files import Folder, LocalFolder, is_remote, local_path
from lightning_traj.measures import MEASURES, shown_in
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

    Scalars by role besides (``traj_layers/mds/q``), whose number does not grow with the number of layers.

    Args:
        loggers: Those of the Trainer; none is fine.
        trajectory: What the standard errors and the pictures are of.
        summary: Its values by measure, as ``trajectory.summary()`` gives; undefined ones are left out.
        step: On the x axis.
        prefix: First part of the tags.
        pictures: Whether to draw them this time: they take most of a log's time.
        folder: Where pictures go as PNG files (``traj_map.png``, …) if no logger takes them; None: nowhere.

    Raises:
        Exception: the first that a logger or a picture raised, after all others have been served.
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
    _attempt(
        [
            lambda: log_scalars(loggers, scalars, step),
            lambda: log_figures(loggers, figures if pictures else {}, step, folder),
        ]
    )


def log_history(loggers: Sequence[Any], trajectory: Trajectory, *, prefix: str = "traj") -> None:
    """Log a trajectory that is over: at each kept snapshot what was to be said then, and all pictures at the last.

    Args:
        loggers: Where to.
        trajectory: What is logged, by its steps.
        prefix: First part of the tags.

    Raises:
        Exception: the first that a logger or a picture raised, after all others have been served.
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
    """Log the pictures by layer and role (``traj_layers/mds``), nine at most. Arguments as for ``log_trajectory``."""
    from lightning_traj.plots import layer_figures

    figures = {f"{prefix}_layers/{name}": draw for name, draw in layer_figures(trajectory).items()}
    log_figures(loggers, figures, step, folder)


def layer_scalars(trajectory: Trajectory) -> dict[str, float]:
    """Measures of each role where there are several (``mds/q``), and the mean and largest heterogeneity of q, k, v."""
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
        _attempt(partial(logger.log_metrics, metrics=dict(finite), step=step) for logger in loggers)


def log_text(loggers: Sequence[Any], tag: str, text: str, step: int) -> None:
    """Log Markdown to TensorBoard."""
    writers = filter(None, map(_summary_writer, loggers))
    _attempt(partial(writer.add_text, tag, text, global_step=step) for writer in writers)


def log_figures(
    loggers: Sequence[Any],
    figures: Mapping[str, Callable[[], Figure]],
    step: int,
    folder: Where = None,
) -> None:
    """Log figures, by tag, to every logger that takes pictures; as PNG files in ``folder`` where none does.

    A figure is drawn once, and not at all if nobody wants it.
    """
    from lightning_traj.plots import save_png, to_rgb

    takers = [take for take in map(_picture_taker, loggers) if take is not None]
    place = folder if folder is None or isinstance(folder, Folder) else LocalFolder(folder)

    def show(tag: str, draw: Callable[[], Figure]) -> None:
        if takers:
            pixels = to_rgb(draw())
            _attempt(partial(take, tag, pixels, step) for take in takers)
        elif place is not None:
            place.write(f"{tag.replace('/', '_')}.png", partial(save_png, draw()))

    _attempt(partial(show, tag, draw) for tag, draw in figures.items())


def add_layout(loggers: Sequence[Any], prefixes: Sequence[str] = ("traj",)) -> None:
    """Group TensorBoard's custom scalars as ``MEASURES`` does; those of one unit and range share a chart.

    TensorBoard shows the last layout of a run. So: one call, with the prefixes of all callbacks in the Trainer, in
    ``on_fit_start``: a layout that the user's module adds in ``on_train_start`` or later wins.
    """

    def add(logger: Any) -> None:
        writer = _summary_writer(logger)
        if writer is not None:
            writer.add_custom_scalars(_layout(prefixes, partial(_tag, logger)))

    _attempt(partial(add, logger) for logger in loggers)


def hyperparameters(*owners: Any) -> dict[str, Any]:
    """What Lightning logs as the hyperparameters of a module and a data module (any of which may be None)."""
    merged: dict[str, Any] = {}
    for owner in owners:
        if getattr(owner, "_log_hyperparams", False):  # save_hyperparameters() sets it
            merged |= owner.hparams_initial
    merged.pop("_class_path", None)  # LightningCLI's own
    return merged


def log_hyperparameters(
    loggers: Sequence[Any],
    hyperparameters: Mapping[str, Any],
    prefixes: Sequence[str] = ("traj",),
    *,
    finished: bool = False,
) -> None:
    """Make the measures columns of TensorBoard's HPARAMS tab, beside the hyperparameters that the user logged.

    The tab shows the last value of each column's curve: only the columns have to be announced. TensorBoard goes
    by the first list of columns in a run, and ignores all later ones. Hence two moments:

    - Lightning writes a list when training starts, of nothing but its placeholder ``hp_metric``. Ours, which has
      that too, must come before: call in ``on_fit_start``.
    - With ``TensorBoardLogger(default_hp_metric=False)`` it writes none, which leaves the user's module free to
      announce metrics of its own. Ours must come after: call in ``on_train_end``, with ``finished=True``. Where the
      user has announced metrics, the columns are those and no others.

    Of several runs in one folder, TensorBoard takes the columns of one, whichever comes first.

    Args:
        loggers: Those of the Trainer. It concerns the TensorBoardLoggers of Lightning among them.
        hyperparameters: As the function of that name gives them; where there are none, nothing is done.
        prefixes: Those of all callbacks in the Trainer, since only the first call counts.
        finished: Whether training has ended.
    """

    def add(logger: Any) -> None:
        placeholder = getattr(logger, "_default_hp_metric", None)
        if _summary_writer(logger) is None or placeholder is None or placeholder is finished:
            return
        columns = [_tag(logger, f"{prefix}/{name}") for prefix in prefixes for name in shown_in("hyperparameters")]
        if placeholder:
            columns.insert(0, "hp_metric")
        # Lightning also logs the values that it is given, at step 0 of their curves; of an empty dict, nothing.
        logger.log_hyperparams(dict(hyperparameters), {column: {} for column in columns})

    if hyperparameters:
        _attempt(partial(add, logger) for logger in loggers)


def log_folder(loggers: Sequence[Any], warn: Callable[[str], object] = lambda _: None) -> str | None:
    """Where the first logger that has a folder keeps this run's files, a path or a URL; None where none has one.

    Args:
        loggers: Those of the Trainer.
        warn: Is told of a logger whose folder is no path, as those of mocks and of home-made loggers can be. The next
            logger is asked then.
    """
    for logger in loggers:
        try:
            if folder := _folder_of(logger):
                return folder
        except Exception as error:  # a logger's properties do what they like
            warn(f"{type(logger).__name__} has no folder for files: {error if str(error) else type(error).__name__}")
    return None


def event_folders(loggers: Sequence[Any]) -> list[str]:
    """The folders to point TensorBoard at: absolute paths, or URLs."""
    folders = set()
    for logger in loggers:
        with suppress(Exception):
            if _summary_writer(logger) is not None and (folder := _path("save_dir", logger.save_dir)):
                folders.add(folder if is_remote(folder) else str(local_path(folder)))
    return sorted(folders)


# Inside -----------------------------------------------------------------------------------------------------

CROSS = "traj_cross"  # angles between two callbacks' quantities belong to neither of their prefixes


def _attempt(tasks: Iterable[Callable[[], object]]) -> None:
    """Do all tasks, then raise the first error."""
    first: Exception | None = None
    for task in tasks:
        try:
            task()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


def _folder_of(logger: Any) -> str | None:
    """Where a logger keeps this run's files; None if it keeps none here.

    Raises:
        TypeError: what it says is no path.
    """
    if folder := _path("log_dir", getattr(logger, "log_dir", None)):
        return folder
    if not (parent := _path("save_dir", getattr(logger, "save_dir", None))):
        return None
    name, version = logger.name, logger.version
    for attribute, value in (("name", name), ("version", version)):
        if not isinstance(value, str | int | None):
            raise TypeError(f"{attribute}={value!r} is no str")
    return os.path.join(parent, str(name), version if isinstance(version, str) else f"version_{version}")


def _path(attribute: str, value: Any) -> str | None:
    """A path as a string; None where there is none.

    Raises:
        TypeError: it is something else. A mock is: some of them have a path, but are none.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, PathLike) and os.fspath(value) == str(value):
        return str(value)
    raise TypeError(f"{attribute}={value!r} is no path")


def _summary_writer(logger: Any) -> Any | None:
    """The logger's writer of TensorBoard events, of torch or of tensorboardX; None where it has none.

    By the name of its class: Lightning's DummyLogger has any attribute that it is asked for.
    """
    try:
        experiment = getattr(logger, "experiment", None)
    except Exception:  # what it is asked to log will say so
        return None
    named = any(base.__name__ == "SummaryWriter" for base in type(experiment).__mro__)
    return experiment if named else None


def _picture_taker(logger: Any) -> Callable[[str, Any, int], object] | None:
    """How this logger takes a picture, uint8 [height, width, 3]; None if it doesn't."""
    # Asked of the class, since Lightning's DummyLogger has every attribute.
    if callable(getattr(type(logger), "log_image", None)):
        return lambda tag, pixels, step: logger.log_image(key=tag, images=[pixels], step=step)
    writer = _summary_writer(logger)
    if writer is None:
        return None
    # Not add_figure: it imports pyplot, which picks a backend for the user.
    return lambda tag, pixels, step: writer.add_image(tag, pixels, global_step=step, dataformats="HWC")


def _tag(logger: Any, tag: str) -> str:
    """The tag under which a logger with ``prefix=`` logs what it is given as ``tag``."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{tag}" if prefix and isinstance(prefix, str) else tag


def _layout(prefixes: Sequence[str], tag: Callable[[str], str]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's layout: {category: {chart: [kind, regular expressions of its tags]}}."""
    layout: dict[str, dict[str, list[Any]]] = {}
    for prefix in prefixes:
        charts: dict[tuple[str, str, str], list[str]] = {}
        for name, measure in MEASURES.items():
            charts.setdefault((measure.group, measure.unit, measure.range), []).append(name)
        for (group, _, _), names in charts.items():
            tags = [f"^{re.escape(tag(f'{prefix}/{name}'))}$" for name in names]
            layout.setdefault(f"{prefix}: {group}", {})[", ".join(names)] = ["Multiline", tags]
        layers = re.escape(tag(f"{prefix}_layers/"))
        curves = {f"{measure} by role": f"^{layers}{measure}/[^/]+$" for measure in shown_in("role")}
        curves["q, k, v heterogeneity"] = f"^{layers}heterogeneity_(mean|max)$"
        layout[f"{prefix}: Layers and roles"] = {chart: ["Multiline", [tags]] for chart, tags in curves.items()}
    if len(prefixes) > 1:
        crossings = f"^{re.escape(tag(f'{CROSS}/'))}"
        layout["Angles between quantities"] = {"degrees": ["Multiline", [crossings]]}
    return layout
