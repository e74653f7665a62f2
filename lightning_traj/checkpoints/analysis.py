"""Files on disk -> Trajectory: the measures of a run that is over, from the checkpoints that it left."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lightning_traj.blocks import FusedLayout, Granularity, Partition, Patterns, block_groups
from lightning_traj.checkpoints.findings import in_files, in_trajectory, label, objects_left_out
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint, Weights
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.grouping import reopen_series
from lightning_traj.checkpoints.parameters import parameters_of
from lightning_traj.checkpoints.paths import LEAST, find
from lightning_traj.checkpoints.resumption import Resumption, stamps
from lightning_traj.checkpoints.series import Order, Series, open_series, unread
from lightning_traj.checkpoints.streaming import Advance, UpdateGram, anchored_gram, local_grams, update_grams
from lightning_traj.measures import UPDATE
from lightning_traj.recording import Recorder
from lightning_traj.trajectory import CheckpointSource, Finding, Trajectory, Windows

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
    """The trajectory of a run, from its checkpoints.

    Lightning's ``.ckpt``, state dicts and networks of torch (``.pt``, ``.pth``, ``.bin``), TorchScript, safetensors,
    archives of Stable-Baselines3, folders of Hugging Face and diffusers, and folders of torch.distributed.checkpoint.
    Nothing in them is executed. Parameters only: buffers are left out, as far as they are known from
    ``model`` or by their names. ``trajectory.settings`` says which ``"checkpoints"`` were read, the
    ``"hyperparameters"`` of the run, what was ``"left_out"``, the ``"rounding"`` of the precision in which parameters
    are stored (a relative error), and, as ``"findings"``, what is wrong with them.

    Args:
        paths: Checkpoints, and folders that hold some: two checkpoints at least.
        key: Where in a file the state dict is nested, such as ``"ema.model"``; None: where it usually is.
        weights: Of checkpoints of Lightning's ``WeightAveraging``: ``"raw"`` or ``"average"``.
        order: ``"step"``: by optimizer steps, else epochs, from the file or its name, else by the number that varies in
            the names; files without one are left out, but for initial ones. ``"given"``: as the paths are given, with
            every file that is named itself and not found in a folder.
        series: Which series to take where the files are of several, such as the two networks of a GAN, or weights and
            their moving average. Without it that is an error, which lists their names.
        partial: Take all files for one series even if they share less than half of their parameters.
        model: A model of the same architecture, on the meta device if you like: its modules tell parameters from
            buffers, roles, and how fused projections are split. None: that of a Hugging Face folder's config.json, if
            transformers is installed; else names have to do.
        snapshot: ``"full"``: exact, one tensor at a time across all checkpoints; ``"sketch"``: one pass over each
            checkpoint, and rows that can be compared with those of other runs, recorded in training or here.
        sketch_dim: Length of a block's sketch; None: 512, as for ``TrajectoryCallback``.
        seed: Of the sketch.
        blocks: As for ``TrajectoryCallback``, and so are include, exclude and fused.
        include: What is counted, by name.
        exclude: What is not.
        fused: Layouts of fused projections, by name.
        skip_bad: Leave out checkpoints that cannot be read, and say so, instead of raising.
        processes: How many work at once on full snapshots; more than one only under ``if __name__ == "__main__":``.
        resume: A file for what has been done, so that an interrupted call can go on, or be repeated, without
            reading again what has not changed. It is yours to remove.
        progress: Whether to show a bar.

    Returns:
        The Trajectory. θ_0 is the first checkpoint; ``steps`` are the run's, ``epochs`` zeros where nothing is known.

    Raises:
        CheckpointError: one cannot be read; the message names it and says why. It is a ValueError.
        FileNotFoundError: there is no such file or folder.
        ValueError: fewer than two checkpoints, steps that are not known, files of several series, or arguments that do
            not go with them.

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
    partition = recorder.partition
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
    task = [recorder.settings, reopen.args[1:], repr(partition.blocks), repr(partition.pieces), inputs]
    resumption = Resumption(resume, task)
    with _bar(sum(block.numel for block in partition.blocks) * n, progress) as advance:
        if recorder.snapshot == "full":
            trajectory, kept = _exact(series, recorder, partition, reopen, processes, resumption, advance)
        else:
            trajectory, kept = _sketched(series, recorder, parameters, resumption, advance)
    checkpoints = [series.checkpoints[i] for i in kept]
    lost = [c for i, c in enumerate(series.checkpoints) if i not in kept]
    notes += [Finding("left out", f"{label(c)} has non-finite entries, and is left out.") for c in lost]
    notes += objects_left_out(checkpoints)
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
    """The unit roundoff of the lowest precision in which parameters are stored."""
    dtypes = {c.shapes[name].dtype for name in names for c in checkpoints if name in c.shapes}
    return max(torch.finfo(dtype).eps / 2 for dtype in dtypes)


def _exact(
    series: Series,
    recorder: Recorder,
    partition: Partition,
    reopen: Callable[[], Sequence[Checkpoint]],
    processes: int,
    resumption: Resumption,
    advance: Advance,
) -> tuple[Trajectory, list[int]]:
    """The trajectory of full snapshots, and which checkpoints are in it."""
    n = len(series.checkpoints)
    done = _restored(resumption.load(), len(partition.blocks), n)
    for b in done:
        advance(n * partition.blocks[b].numel)
    left = {b: partition.pieces[b] for b in range(len(partition.blocks)) if b not in done}
    if processes > 1:  # the largest first: they would keep one process busy when all others have finished
        left = dict(sorted(left.items(), key=lambda item: -partition.blocks[item[0]].numel))

    def state() -> dict[int, Any]:
        return {b: (list(r.having), list(r.bad), torch.from_numpy(r.gram)) for b, r in done.items()}

    try:
        for b, result in update_grams(left, series.checkpoints, reopen, processes, advance):
            done[b] = result
            resumption.save(state)
    finally:
        resumption.save(state, now=True)
    everywhere = sorted(set(range(n)).difference(*(result.bad for result in done.values())))
    _check_left(len(everywhere), n)
    grams = [done[b].over(everywhere) for b in range(len(partition.blocks))]
    local = np.stack([local_grams(gram) for gram in grams], axis=1)
    squares = np.maximum(local[:, :, UPDATE, UPDATE], 0.0)  # ‖u_t‖² of each block, [n, B]
    groups = block_groups(partition.blocks).values()
    trajectory = Trajectory(
        blocks=partition.blocks,
        steps=series.steps[everywhere],
        epochs=series.epochs[everywhere],
        anchored=np.stack([anchored_gram(gram) for gram in grams]),
        local=local,
        paths=np.stack([np.sqrt(squares[:, members].sum(axis=1)).cumsum() for members in groups], axis=1),
        windows=Windows(np.zeros((0, len(partition.blocks), 3, 0))),
        settings={**recorder.settings, "root": partition.root},
    )
    return trajectory, everywhere


def _restored(kept: Any, blocks: int, n: int) -> dict[int, UpdateGram]:
    """Blocks that have been done, from what was kept of them; none where that is nothing of the kind."""
    try:
        done = {b: UpdateGram(tuple(having), tuple(bad), gram.numpy()) for b, (having, bad, gram) in kept.items()}
        for b, result in done.items():
            m = len(result.having)
            if (
                b not in range(blocks)
                or result.gram.shape != (m, m)
                or not {*result.having, *result.bad} <= {*range(n)}
            ):
                return {}
    except Exception:
        return {}
    return done


def _sketched(
    series: Series, recorder: Recorder, parameters: Iterable[str], resumption: Resumption, advance: Advance
) -> tuple[Trajectory, list[int]]:
    """The trajectory of sketches, with its rows, and which checkpoints are in it."""
    dropped: list[int] = []
    if (kept := resumption.load()) is not None:
        try:
            recorder.load_state_dict(kept["state"])
            recorder.collect()
            dropped = list(kept["dropped"])
        except Exception:
            recorder.clear()

    def state() -> dict[str, Any]:
        return {"dropped": dropped, "state": recorder.state_dict()}

    try:
        for step, epoch, checkpoint in zip(
            series.steps.tolist(), series.epochs.tolist(), series.checkpoints, strict=True
        ):
            if step not in (*recorder.steps, *dropped):
                present = [name for name in parameters if name in checkpoint.shapes]
                recorder.record({name: checkpoint.read(name) for name in present}, step, epoch)
                checkpoint.release()
                if not recorder.gram.finite[-1]:  # collecting takes longer than recording
                    dropped.extend(recorder.collect()[1])
                resumption.save(state)
            advance(sum(block.numel for block in recorder.blocks))
    finally:
        if len(recorder):
            resumption.save(state, now=True)
    _check_left(len(recorder), len(series.checkpoints))
    trajectory = recorder.collect()[0]
    rows = recorder.rows()
    steps = series.steps.tolist()
    return trajectory if rows is None else trajectory.with_sketches(rows), [steps.index(s) for s in recorder.steps]


@contextmanager
def _bar(entries: int, shown: bool) -> Iterator[Advance]:
    """A progress bar over so many entries."""
    if not shown:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("reading checkpoints", total=entries)
        yield lambda count: progress.advance(task, count)


def _check_left(finite: int, n: int) -> None:
    if finite < LEAST:
        raise ValueError(f"{finite} of {n} checkpoints are finite: two are needed.")


def _check(**arguments: Any) -> None:
    choices = {"order": ("step", "given"), "weights": ("raw", "average"), "snapshot": ("full", "sketch")}
    for argument, values in choices.items():
        if arguments[argument] not in values:
            raise ValueError(f"{argument}={arguments[argument]!r}: pass {' or '.join(map(repr, values))}.")
    processes = arguments["processes"]
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r}: pass a positive integer.")
