"""Checkpoints on disk -> the trajectory of the run that left them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_traj.blocks import FusedLayout, Granularity, Patterns
from lightning_traj.checkpoints.exact import exact_trajectory
from lightning_traj.checkpoints.findings import in_files, in_trajectory, label, objects_left_out, unread_tensors
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint, Weights
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.grouping import reopen_series
from lightning_traj.checkpoints.parameters import parameters_of
from lightning_traj.checkpoints.paths import find
from lightning_traj.checkpoints.resumption import Resumption, stamps
from lightning_traj.checkpoints.series import Order, Series, open_series, unread
from lightning_traj.checkpoints.sketched import sketched_trajectory
from lightning_traj.checkpoints.streaming import Advance
from lightning_traj.recording import Recorder, RecordingSettings
from lightning_traj.trajectory import CheckpointSource, Finding, Trajectory

__all__ = ["CheckpointError", "from_checkpoints"]


def from_checkpoints(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    key: str | None = None,
    weights: Weights = "raw",
    order: Order = "step",
    series: str | None = None,
    partial: bool = False,
    model: nn.Module | None = None,
    snapshot: Literal["full", "sketch"] = "full",
    sketch_dim: int | None = None,
    seed: int = 0,
    blocks: Granularity = "tensor",
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    fused: Mapping[str, FusedLayout] | None = None,
    skip_bad: bool = False,
    processes: int = 1,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Trajectory:
    """Return the trajectory of a run, from its checkpoints.

    Read are Lightning's ``.ckpt``, state dicts and networks of torch (``.pt``, ``.pth``, ``.bin``), TorchScript,
    safetensors, archives of Stable-Baselines3, folders of Hugging Face, accelerate and diffusers, and folders of
    torch.distributed.checkpoint. Nothing in them is executed. Only parameters count: buffers are left out, as far as
    they are known from ``model`` or by their names. ``trajectory.provenance.source`` has the paths that were read, the
    hyperparameters of the run, the buffers that were left out, the precision in which parameters are stored, and what
    is wrong with the checkpoints; ``trajectory.settings`` has the same as plain values.

    Args:
        paths: Checkpoints, and folders that hold some; at least two checkpoints.
        key: Keys, joined by dots, that lead to the state dict in a file, such as ``"ema.model"``; None where it
            usually is.
        weights: ``"raw"`` or ``"average"``, of checkpoints of Lightning's ``WeightAveraging``.
        order: ``"step"``: by optimizer steps, else epochs, from the file or its name, else by the number that varies in
            the names; files without one are left out, but for initial ones. ``"given"``: as the paths are given, with
            every file that is named itself and not found in a folder.
        series: Name of the series to take if the files are of several, such as the two networks of a GAN, or weights
            and their moving average. Without it that is an error, which lists the names.
        partial: Whether to take all files for one series even if they share less than half of their parameters.
        model: Model of the same architecture, which may be on the meta device: its modules tell parameters from
            buffers, roles, and how fused projections are split. None: the model of a Hugging Face folder's config.json
            if transformers is installed, and else names have to do.
        snapshot: ``"full"``: exact, one tensor at a time across all checkpoints; ``"sketch"``: one pass over each
            checkpoint, and rows that can be compared with those of other runs, recorded in training or here.
        sketch_dim: Length of a block's sketch; None: 512, as for ``TrajectoryCallback``.
        seed: Seed of the sketch.
        blocks: How parameters make up blocks, as for ``TrajectoryCallback``.
        include: Patterns of the names that count, as for ``TrajectoryCallback``.
        exclude: Patterns of the names that do not count.
        fused: Layouts of fused projections, by pattern.
        skip_bad: Whether to leave out checkpoints that cannot be read, with a finding, instead of raising.
        processes: Number of processes for full snapshots; more than one only under ``if __name__ == "__main__":``.
        resume: File in which progress is kept, so that an interrupted call can go on, or be repeated, without reading
            again what has not changed. It is not removed.
        progress: Whether to show a progress bar.

    Returns:
        The Trajectory. θ_0 is the first checkpoint; ``steps`` are the run's, and ``epochs`` are zeros if unknown.

    Raises:
        CheckpointError: A checkpoint cannot be read; the message names it and says why. It is a ValueError.
        FileNotFoundError: There is no such file or folder.
        ValueError: There are fewer than two checkpoints, their steps are not known, they are of several series, or
            arguments do not go with them.

    Example:
        >>> from lightning_traj import from_checkpoints
        >>> trajectory = from_checkpoints("logs/version_0/checkpoints")  # doctest: +SKIP
    """
    _check(order=order, weights=weights, snapshot=snapshot, processes=processes)
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    left, skipped, explicit = find(paths), list[Finding](), {Path(path) for path in paths}
    while True:
        try:
            opened = open_series(
                left,
                key=key,
                weights=weights,
                order=order,
                series=series,
                partial=partial,
                skip_bad=skip_bad,
                skipped=skipped,
                explicit=explicit,
            )
            recorder = Recorder(
                RecordingSettings(
                    track="average" if weights == "average" else "weights",
                    snapshot=snapshot,
                    sketch_dim=sketch_dim,
                    blocks=blocks,
                    include=include,
                    exclude=exclude,
                    fused=fused,
                    max_snapshots=max(4, len(opened.checkpoints)),
                    window=0,
                    seed=seed,
                )
            )
            reopen = functools.partial(reopen_series, [c.path for c in opened.checkpoints], key, weights)
            return _trajectory(opened, model, recorder, reopen, partial, processes, resume, progress)
        except CheckpointError as error:  # some damage shows when tensors are read
            if not skip_bad or error.path not in left:
                raise
            left.remove(error.path)
            skipped.append(unread(error))


def _trajectory(
    series: Series,
    model: nn.Module | None,
    recorder: Recorder,
    reopen: functools.partial[list[Checkpoint]],
    partial: bool,
    processes: int,
    resume: str | os.PathLike[str] | None,
    progress: bool,
) -> Trajectory:
    n = len(series.checkpoints)
    hyperparameters = series.checkpoints[-1].hyperparameters  # before hours of reading: it may fail
    parameters, model, left_out, notes = parameters_of(series.checkpoints, model, partial)
    recorder.check(parameters, model)
    partition = recorder.state.partition
    for checkpoint in series.checkpoints:  # as in training: what comes later makes blocks of its own
        present = {name: like for name, like in parameters.items() if name in checkpoint.shapes}
        partition = partition.extended(present, model)
    notes += [
        Finding(
            "parameters",
            f"{name} looks like fused parts (q, k and v, or a gate and its input) in an unknown layout, and stays one "
            "block: declare it, or pass a model.",
        )
        for name in partition.undeclared
    ]
    inputs = [(stamps(c.path), step) for c, step in zip(series.checkpoints, series.steps.tolist(), strict=True)]
    task = [recorder.plain_settings, reopen.args[1:], repr(partition.blocks), repr(partition.pieces), inputs]
    resumption = Resumption(resume, task)
    with _bar(sum(block.numel for block in partition.blocks) * n, progress) as advance:
        if recorder.settings.snapshot == "full":
            trajectory, kept = exact_trajectory(series, recorder, partition, reopen, processes, resumption, advance)
        else:
            trajectory, kept = sketched_trajectory(series, recorder, parameters, resumption, advance)
    checkpoints = [series.checkpoints[i] for i in kept]
    lost = [c for i, c in enumerate(series.checkpoints) if i not in kept]
    notes += [Finding("left out", f"{label(c)} has non-finite entries, and is left out.") for c in lost]
    notes += unread_tensors(checkpoints) + objects_left_out(checkpoints)
    clock = None if series.clock is None else series.clock.at(kept)
    notes += in_files(checkpoints, parameters, clock) + in_trajectory(trajectory, checkpoints, parameters)
    source = CheckpointSource(
        paths=tuple(str(checkpoint.path) for checkpoint in checkpoints),
        hyperparameters=hyperparameters,
        left_out=left_out,
        rounding=_rounding(checkpoints, parameters),
        findings=(*series.findings, *notes),
    )
    return replace(trajectory, settings={**trajectory.settings, **source.to_settings()})


def _rounding(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> float:
    """Return the unit roundoff of the lowest precision in which parameters are stored."""
    dtypes = {c.shapes[name].dtype for name in names for c in checkpoints if name in c.shapes}
    return max(torch.finfo(dtype).eps / 2 for dtype in dtypes)


@contextmanager
def _bar(entries: int, shown: bool) -> Iterator[Advance]:
    """Show a progress bar over this number of entries."""
    if not shown:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("reading checkpoints", total=entries)
        yield lambda count: progress.advance(task, count)


def _check(**arguments: Any) -> None:
    choices = {"order": ("step", "given"), "weights": ("raw", "average"), "snapshot": ("full", "sketch")}
    for argument, values in choices.items():
        if arguments[argument] not in values:
            raise ValueError(f"{argument}={arguments[argument]!r}: pass {' or '.join(map(repr, values))}.")
    processes = arguments["processes"]
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r}: pass a positive integer.")
