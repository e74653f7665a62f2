"""Results of a comparison in one folder: a page, pictures, a table, and events for TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_traj.compare.divergence import joint_partings
from lightning_traj.compare.figures import comparison_figures
from lightning_traj.compare.page import comparison_report
from lightning_traj.compare.runs import Run
from lightning_traj.compare.table import write_csv
from lightning_traj.files import replace_together
from lightning_traj.measures import shown_in
from lightning_traj.plots import to_png
from lightning_traj.report import page

EVENTS = "tensorboard"
_PICTURE = re.compile(
    r"(maps|relative_maps|layers_by_runs|(joint_map|joint_relative_map|joint_path|partings)(_\d+)?)\.png"
)


def write_comparison(runs: Sequence[Run], out: str | PathLike[str]) -> list[Path]:
    """Write ``comparison.html``, its pictures as PNG, ``comparison.csv`` and ``tensorboard/``.

    Args:
        runs: At least two runs, as ``load_runs`` returns them.
        out: Folder for the results, made if it is missing. The results of an earlier comparison in it are replaced.

    Returns:
        Paths of the files, the page first.

    Raises:
        ValueError: fewer than two runs, or two runs with the same name.
        FileExistsError: `out` has a folder ``tensorboard`` that is not from a comparison.
        OSError: a file could not be written.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: compare takes at least two, and was given {len(runs)}.")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"runs: two have the same name, of {[run.name for run in runs]}; dataclasses.replace one's.")
    out = Path(out)
    earlier = _earlier(out)
    joints = joint_partings(runs)
    figures = comparison_figures(runs, joints)
    pictures = {name: to_png(draw(), page.SHARPNESS) for name, draw in figures.items()}
    written = {"comparison.html": comparison_report(runs, joints, pictures).encode()}
    written |= {f"{name}.png": png for name, png in pictures.items()}
    with replace_together(out, earlier) as folder:
        for name, content in written.items():
            (folder / name).write_bytes(content)
        write_csv(runs, folder / "comparison.csv")
        events = [path.relative_to(folder) for path in write_events(runs, folder / EVENTS)]
    return [*(out / name for name in written), out / "comparison.csv", *(out / path for path in events)]


def _earlier(out: Path) -> list[str]:
    """Return the names of all files and folders that an earlier comparison, maybe of other runs, left in a folder."""
    if not (out / "comparison.html").exists():
        if (out / EVENTS).exists():
            raise FileExistsError(f"out={str(out)!r} has {EVENTS}/ of something else than a comparison: name another.")
        return []
    return sorted(path.name for path in out.iterdir() if is_made(path.name))


def is_made(name: str) -> bool:
    """Return whether a comparison can write a file or a folder of this name."""
    charts = {f"series_{measure}.png" for measure in shown_in("curve")}
    return name in charts | {"comparison.html", "comparison.csv", EVENTS} or _PICTURE.fullmatch(name) is not None


def write_events(runs: Sequence[Run], folder: Path, prefix: str = "traj") -> list[Path]:
    """Write the measures of each run over its steps as events, so that TensorBoard draws the runs in one chart.

    The newest values stand beside the hyperparameters in the HPARAMS tab. TensorBoard takes the columns of that tab
    from any one of the runs, so all runs announce the same columns.

    Args:
        runs: Runs to write. The events of each go to a folder with its name.
        folder: Folder to point TensorBoard at, which holds no events yet.
        prefix: First part of the tags.

    Returns:
        Paths of the event files.
    """
    from torch.utils.tensorboard import SummaryWriter

    chosen = _of_one_kind([run.hyperparameters for run in runs])
    names = [name for name in runs[0].summary if any(isfinite(run.summary[name]) for run in runs)]
    columns = dict.fromkeys((f"{prefix}/{name}" for name in names), 0.0)
    together: dict[str, Any] = {name: value for some in reversed(chosen) for name, value in some.items()}
    announced = _hparams(together, columns)[0]
    files: list[Path] = []
    for run, its in zip(runs, chosen, strict=True):
        with SummaryWriter(str(folder / run.name)) as writer:
            for event in (announced, *_hparams(its, columns)[1:]):
                writer.file_writer.add_summary(event)
            for name, values in run.series.items():
                for step, value in zip(run.trajectory.steps.tolist(), values.tolist(), strict=True):
                    if isfinite(value):
                        writer.add_scalar(f"{prefix}/{name}", value, step)
        files += (folder / run.name).glob("events.out.tfevents.*")
    return files


def _hparams(chosen: Mapping[str, Any], columns: Mapping[str, float]) -> tuple[Any, Any, Any]:
    """Return the events of the HPARAMS tab: its columns, the values of a run, and the end of the run."""
    from torch.utils.tensorboard.summary import hparams

    events: tuple[Any, Any, Any] = hparams(dict(chosen), dict(columns))  # type: ignore[no-untyped-call]
    return events


def _of_one_kind(all_of: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert hyperparameters for TensorBoard: numbers, booleans or texts, of one type in each column."""
    kinds: dict[str, set[type]] = {}
    for some in all_of:
        for name, value in some.items():
            kinds.setdefault(name, set()).add(type(value))
    plain: dict[str, type] = {}
    for name, its in kinds.items():
        plain[name] = bool if its == {bool} else float if its <= {int, float} else str
    return [{name: plain[name](value) for name, value in some.items()} for some in all_of]
