"""Parameters -> rows -> Gram matrix -> Trajectory. Knows no Lightning; serves training and files alike."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_traj.distributed import Ownership
from lightning_traj.files import Picklable
from lightning_traj.gram import ExactGram
from lightning_traj.recording.agreement import agree
from lightning_traj.recording.collector import Collector, sketch_rows
from lightning_traj.recording.cost import cost_of, in_bytes
from lightning_traj.recording.full_store import FullStore
from lightning_traj.recording.process import NamedTensors, Process, Read, read_now
from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.resuming import check_model, compare_ranks
from lightning_traj.recording.saved_state import current_state, restored, saved
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.recording.sketch_store import Sketcher, SketchStore
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.recording.store import SnapshotStore
from lightning_traj.recording.unreadable import Unreadable, unrecordable, without
from lightning_traj.recording.window_recorder import WindowRecorder
from lightning_traj.recording.windows import StepWindows
from lightning_traj.sketch import DEFAULT_DIM, CountSketch
from lightning_traj.tensors import UnreadableError
from lightning_traj.text import check_unchanged
from lightning_traj.trajectory import Trajectory

ROW_BUDGET = 2**30  # bytes: more than that is kept on the host instead of an accelerator


class Recorder(Picklable, transient={"_model": NoneType}):
    """Records snapshots of parameters, and returns the Trajectory so far.

    Recording a sketched snapshot never waits for the device, unless it brings new parameters; ``collect`` copies the
    new Gram rows to the host, once.

    Args:
        settings: Settings of the recording. Default: ``RecordingSettings()``.
        folder: Folder of full snapshots. Default: the working directory.

    Attributes:
        state: Recording so far.
        windows: Records windows of single steps.
        process: This process among those that record together.
        snapshots: Files of full snapshots.
        ended: Clean names of parameters that left the model while they were recorded: their blocks rest.
    """

    def __init__(self, settings: RecordingSettings | None = None, folder: Path | None = None) -> None:
        self.settings = settings or RecordingSettings()
        self.snapshots = SnapshotFiles(folder or Path.cwd())
        self.process = Process()
        self._model: weakref.ref[nn.Module] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded: the next snapshot is a new θ_0."""
        settings = self.settings
        self._begin(DEFAULT_DIM if settings.sketch_dim is None else settings.sketch_dim)
        self.state = RecordState(settings.partition(), self.store.empty_gram())
        self.windows = WindowRecorder(self, StepWindows(settings.window_steps, settings.max_snapshots))
        self.ended: set[str] = set()
        self._collector = Collector()
        self._formerly: Path | None = None  # of a copy: the folder where its full snapshots are, until it maps them

    def _begin(self, sketch_dim: int) -> None:
        self.process.ownership = Ownership()
        unreadable = Unreadable()
        sketch = CountSketch(sketch_dim, self.settings.seed)
        self.sketcher = Sketcher(sketch, self.process, unreadable, divided=self.settings.is_full)
        self.store: SnapshotStore = (
            FullStore(self.snapshots, self.process, unreadable) if self.settings.is_full else SketchStore(self.sketcher)
        )

    def __len__(self) -> int:
        return len(self.state.history)

    @property
    def module(self) -> nn.Module | None:
        """The module that has the parameters, if ``check`` was given one that still exists."""
        return None if self._model is None else self._model()

    @property
    def plain_settings(self) -> dict[str, Any]:
        """The settings that have to stay the same for a run to go on, as plain values."""
        return self.settings.described(self.sketcher.sketch.dim)

    # Before training

    def check(self, parameters: NamedTensors, model: nn.Module | None = None, *, are_values: bool = True) -> None:
        """Check that these parameters can be recorded, and leave out those that cannot.

        ``state.partition.unreadable`` names the ones that are left out: their values cannot be read, or are not finite
        before anything was recorded.

        Args:
            parameters: Tensors by qualified name.
            model: Module that has them.
            are_values: Whether the tensors have the values that are recorded, and not only their names and shapes.

        Raises:
            ValueError: There is nothing to record, a pattern has no match, or blocks differ from a resumed run's.
            RuntimeError: The check failed on another rank alone.
        """
        self._model = None if model is None else weakref.ref(model)
        self.sketcher.unreadable.reset()
        ranks, state = self.process.ranks, self.state
        ranks.all_do(lambda: check_model(state, parameters, model, self.ended))
        are_first = are_values and not len(self)
        self.leave_out(unrecordable(ranks, state.partition, parameters, model, are_first=are_first))

    def undeclared(self, parameters: NamedTensors) -> tuple[str, ...]:
        """Return names of parameters that look fused and stay whole, since their layout is not known or declared."""
        return self.state.partition.extended(parameters, self.module).undeclared

    def prepare(self, parameters: NamedTensors) -> str:
        """Choose where rows are kept, and return one line that says what recording will cost.

        Raises:
            ValueError: On all ranks alike, if they have other parameters, blocks or settings than each other.
        """
        process, is_full = self.process, self.settings.is_full
        partition = self.state.partition.extended(parameters, self.module)
        compare_ranks(process.ranks, partition, parameters, self.plain_settings)
        recorded = partition.recorded(parameters)
        cost = cost_of(partition, recorded, self.settings, self.sketcher.sketch)
        # Before a lazy model has values, none of it is recorded.
        device = next((p.device for p in (*recorded.values(), *parameters.values())), torch.device("cpu"))
        if is_full or device.type == "mps":  # files are read on the host; MPS has no float64
            device = torch.device("cpu")
        where = f"on disk, in {self.snapshots.folder}" if is_full else "in memory"
        if device.type != "cpu" and cost.rows + cost.grams > ROW_BUDGET:
            process.storage = torch.device("cpu")
            where += f" of the host (above {in_bytes(ROW_BUDGET)} in all)"
        process.device = device
        self.state = self.state.to(device, process.storage)
        self.windows.state = self.windows.state.to(device)
        self.sketcher.divide(partition, recorded)
        if (folder := self._formerly) is not None:
            process.ranks.all_do(lambda: self._map_files(folder, parameters))
            self._formerly = None
        number = int(process.ranks.each([uuid.uuid4().int >> 68])[0, 0])  # rank 0's
        self.snapshots.begin(number, process.ranks.rank, process.ranks.size)
        return cost.describe(self.settings.snapshot, where)

    # During training

    def record(self, parameters: NamedTensors | Read, step: int, epoch: float) -> bool:
        """Take a snapshot of named parameters. All ranks have to call it.

        Args:
            parameters: Tensors by qualified name, or a function that returns them. What the function raises on this
                rank is raised after the other ranks have been told. Blocks are made of the floating-point ones; new
                ones may come, and missing ones count as unchanged.
            step: Optimizer steps taken.
            epoch: Completed epochs, fractional within one.

        Returns:
            False if this (step, epoch) has been recorded already, or there is nothing to record.

        Raises:
            ValueError: A parameter has changed its size.
            OSError: A full snapshot could not be written.
            FloatingPointError: A full snapshot, or one with new parameters, has a non-finite entry or failed on
                another rank.
        """
        latest, unreadable = self.state.history.latest, self.sketcher.unreadable
        if latest is not None and (step, epoch) <= latest:
            return False
        read = read_now(parameters if callable(parameters) else lambda: parameters)
        if unreadable.any_left_out and self.process.ranks.size > 1:
            self.leave_out(unreadable.tell(self.process.ranks, self.state.partition))
        while not self.state.is_lost:
            try:
                return self._take(read, (step, epoch))
            except UnreadableError as error:
                if self.process.ranks.size > 1:  # others have left this snapshot out
                    raise
                self.leave_out(error.reasons)
        return False

    def collect(self, drop: bool = True) -> tuple[Trajectory, dict[int, tuple[str, ...]]]:
        """Return the Trajectory so far, after copying new entries to the host.

        Args:
            drop: Whether snapshots with non-finite entries are dropped from what is kept; on all ranks then, or they
                keep different ones. Otherwise they are only left out of the Trajectory.

        Returns:
            The Trajectory, and the names of the blocks with non-finite entries in each snapshot that was dropped, by
            its step.
        """
        self.state = replace(self.state, gram=self.state.gram.filled())
        trajectory, good, spoilt = self._collector.collect(self.state, self.windows.state, self.plain_settings)
        if not drop or not spoilt:
            return trajectory, {}
        if good:
            self.state = self.state.keep(good)
        else:
            unreadable = self.state.partition.unreadable
            self.clear()  # without a finite θ_0 nothing is defined: the next snapshot begins anew
            self.leave_out(unreadable)
        self.sketcher.unreadable.any_left_out = True
        return trajectory, dict(spoilt)

    def rows(self) -> np.ndarray | None:
        """Return the kept sketches: θ_0, then displacements, float32 [n, k] on the host; None for full snapshots."""
        return sketch_rows(self.state)

    # State

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickles and deep copies hold: on the host, so that any machine can read it.

        Mapped files are left out, and opened again when the copy goes on recording.
        """
        host = torch.device("cpu")
        state, formerly = self.state.to(host), self._formerly
        if isinstance(gram := state.gram, ExactGram) and len(self):
            state = replace(state, gram=replace(gram, snapshots=(), base=(), latest=(), before=()))
            formerly = formerly or self.snapshots.folder.absolute()
        return super().__getstate__() | {"state": state, "_formerly": formerly}

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded as tensors and primitives; of full snapshots their names, not the files."""
        return saved(self.state, self.windows.state, self.plain_settings, str(self.snapshots.folder.absolute()))

    def load_state_dict(self, state: Mapping[str, Any], parameters: NamedTensors | None = None) -> None:
        """Go on where ``state_dict`` was taken, on however many ranks that was.

        Args:
            state: State of any rank: it is the same on all.
            parameters: Tensors by qualified name; full snapshots need them if each rank has a part of them.

        Raises:
            ValueError: The settings differ from those of the state (the message has both values), or between ranks.
            FileNotFoundError: A full snapshot is missing.
            RuntimeError: Full snapshots could not be read on another rank.
        """
        state, settings = current_state(state), self.settings
        ours = self.plain_settings
        if settings.sketch_dim is None:  # a length that was left at its default is that of the recording
            del ours["sketch_dim"]
        check_unchanged(ours, state["settings"], "the trajectory in the checkpoint was recorded", show=repr)
        self.clear()
        self._begin(state["settings"]["sketch_dim"])
        self.state = restored(
            state, settings.partition(), self.store.empty_gram(), self.sketcher.sizes, self.process.device
        )
        self.windows.state = StepWindows.from_state(state["windows"], settings.window_steps, settings.max_snapshots)
        if settings.is_full:
            compare_ranks(self.process.ranks, self.state.partition, parameters or {}, self.plain_settings)
            self.sketcher.divide(self.state.partition, parameters or {})
            self.process.ranks.all_do(lambda: self._map_files(Path(state["folder"]), parameters or {}))

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave out parameters from now on, on all ranks alike.

        Args:
            reasons: Why they cannot be recorded, by clean name.
        """
        if reasons:
            self.state = replace(self.state, partition=without(self.state.partition, reasons))
            self.sketcher.forget()

    # Inside

    def _take(self, read: Read, key: tuple[int, float]) -> bool:
        """Take a snapshot; return False if there is nothing to take."""
        partition, read, summed = agree(self.state, self.store, self.sketcher, read, self.module)
        if not partition.blocks:
            self.state = replace(self.state, partition=partition)
            return False
        with self.process.ranks.alone():  # what fails here, fails after ranks have met
            gram, failure, name = self.store.take(self.state, partition, read, key[0], summed)
            if gram is None:
                self.sketcher.unreadable.any_left_out = True
            else:
                self.state = self.state.with_snapshot(partition, gram, key, self.settings.max_snapshots, name)
        if failure is not None:  # left out, or recorded as non-finite, on all ranks alike
            raise failure
        return True

    def _map_files(self, formerly: Path, parameters: NamedTensors) -> None:
        assert isinstance(self.store, FullStore)
        self.state = replace(self.state, gram=self.store.mapped(self.state, formerly, parameters))
