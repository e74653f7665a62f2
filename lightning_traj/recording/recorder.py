"""Parameters -> rows -> running Gram matrix -> Trajectory. Knows no Lightning; serves training and files alike."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_traj.blocks import (
    Block,
    BlockRules,
    FusedLayout,
    Granularity,
    Partition,
    Patterns,
    clean_name,
    piece_from_state,
)
from lightning_traj.distributed import Ownership, Ranks
from lightning_traj.files import Picklable
from lightning_traj.gram import GrowingGram, Row
from lightning_traj.measures import UPDATE
from lightning_traj.recording.cost import cost_of, in_bytes
from lightning_traj.recording.full_rows import FullRows
from lightning_traj.recording.host_copy import HostCopy, mirrored
from lightning_traj.recording.omission import without_blocks
from lightning_traj.recording.path_lengths import PathLengths
from lightning_traj.recording.saved_state import FORMAT, current_state, gram_state, load_gram
from lightning_traj.recording.sketches import sketch_blocks
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.recording.thinning import thinned
from lightning_traj.recording.windows import StepWindows
from lightning_traj.sketch import DEFAULT_DIM, CountSketch
from lightning_traj.tensors import UnreadableError, has_entries
from lightning_traj.trajectory import Trajectory, Windows

# From how many entries for each number that is sent, and how many in all, it pays to share sketching out: with gloo on
# one machine a number takes as long as 7 entries, and the call as half a million.
DIVIDED = 16, 2**20
Object = TypeVar("Object")

ROW_BUDGET = 2**30  # bytes: what would pass it is kept on the host instead of an accelerator


class Recorder(
    Picklable,
    transient={
        "model": NoneType,
        "_division": Ownership,
        "_settled": NoneType,
        "_sketched": NoneType,
        "_mirror": NoneType,
        "_collected": NoneType,
    },
):
    """Records snapshots of parameters, and gives the Trajectory so far.

    Recording a sketched snapshot never waits for the device, unless it brings new parameters; ``collect`` copies the
    new Gram rows to the host, once.

    Args:
        track: What the tensors are that are given as parameters: said in the trajectory.
        snapshot: ``"sketch"`` or ``"full"``.
        sketch_dim: Length of the sketch of a block. None: ``DEFAULT_DIM``, or, after ``load_state_dict``, the length
            with which that state was recorded.
        blocks: What a block is: ``"tensor"``, ``"layer"``, ``"role"``, ``"model"``, or a function from a tensor's block
            to the name of the block that it is added to.
        include, exclude: Glob patterns over names of parameters and parts: what is recorded; None includes all,
            excludes none.
        fused: Layouts of fused tensors that are not known, by pattern over parameter names.
        max_snapshots: Past this many, every second one between the first and the latest is dropped, and from
            then on every second one is kept.
        window: Optimizer steps of a window for oscillation, which is sketched in any case; at most ``max_snapshots``
            windows are kept.
        seed: Of the sketch.
        folder: Where full snapshots go.
    """

    def __init__(
        self,
        *,
        track: str = "weights",
        snapshot: str = "sketch",
        sketch_dim: int | None = None,
        blocks: Granularity = "tensor",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        fused: Mapping[str, FusedLayout] | None = None,
        max_snapshots: int = 256,
        window: int = 8,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.track = track
        self.snapshot = snapshot
        self.sketch_dim, self.seed = sketch_dim, seed
        self.partition = Partition(BlockRules(blocks, fused or {}, include, exclude))
        self.max_snapshots = max_snapshots
        self.window = window
        self.snapshots = SnapshotFiles(folder or Path.cwd())
        self.ranks = Ranks()
        self.model: weakref.ref[nn.Module] | None = None  # where the types of modules are seen
        self.device = torch.device("cpu")
        self.storage: torch.device | None = None  # where rows are kept, if not on the device
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded: the next snapshot is a new θ_0."""
        self.sketch = CountSketch(DEFAULT_DIM if self.sketch_dim is None else self.sketch_dim, self.seed)
        self.gram = GrowingGram(exact=self.snapshot == "full", storage=self.storage)
        self.partition = replace(
            self.partition, blocks=(), pieces=(), excluded=frozenset(), undeclared=(), unreadable={}, root=""
        )
        self.steps: list[int] = []
        self.epochs: list[float] = []
        self.order: list[int] = []  # of the kept snapshots: which of all scheduled ones they are
        self.files: list[str] = []  # of full snapshots: the kept ones, the last two scheduled, each block's first
        self.recent_files: list[str] = []
        self.base_files: list[str] = []
        self.path_lengths = PathLengths()
        self.scheduled = 0
        self.stride = 1
        self.latest_key: tuple[int, float] | None = None
        self.windows = StepWindows(self.window, self.max_snapshots)
        self._sketched: tuple[int, Row, Exception | None] | None = None  # latest sketch: step, row, failure
        self._division = Ownership()  # of parameters among ranks
        self.full = FullRows(self.snapshots)
        self._unmapped: Path | None = None  # a copy's full snapshots: where their files are
        self.ended: set[str] = set()  # parameters that left the model while they were recorded, by clean name
        self._failing: dict[str, str] = {}  # why parameters could not be read here, where snapshots were left out
        self._left_out_any = False  # whether a snapshot was left out, on all ranks
        self._settled: Recorder | None = None  # as it was before what is being changed
        self._mirror: HostCopy | None = None  # what was collected last, and the trajectory of it
        self._collected: Trajectory | None = None

    def __len__(self) -> int:
        return len(self.order)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks so far."""
        return self.partition.blocks

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Why parameters are left out that cannot be read, by name."""
        return self.partition.unreadable

    @property
    def settings(self) -> dict[str, Any]:
        """What has to stay the same for a run to go on: plain values."""
        return {
            "track": self.track,
            "snapshot": self.snapshot,
            "sketch_dim": self.sketch.dim,
            "seed": self.sketch.seed,
            **self.partition.rules.settings,
            "max_snapshots": self.max_snapshots,
            "window": self.window,
        }

    # Before training

    def check(self, parameters: Mapping[str, Tensor], model: nn.Module | None = None) -> None:
        """Can these be recorded? Those whose values cannot be read are left out: ``unreadable`` names them.

        Args:
            parameters: By qualified name.
            model: Whose parameters they are. A weak reference is kept, for parameters that come later.

        Raises:
            ValueError: there is nothing to record, a pattern has no match, or blocks differ from a resumed run's.
            RuntimeError: it failed on another rank alone.
        """
        self.model = None if model is None else weakref.ref(model)
        self._failing, self._left_out_any = {}, False  # of an earlier run
        self.ranks.all_do(partial(self._check, parameters, model))
        found = self.partition.find_unreadable(parameters, model)
        self._leave_out(self._found_anywhere(found, [clean_name(name) for name in parameters]))

    def _check(self, parameters: Mapping[str, Tensor], model: nn.Module | None) -> None:
        self.partition.check(parameters, model)
        if any(torch.nn.parameter.is_lazy(parameter) for parameter in parameters.values()):
            return
        extended = self._extended(parameters)
        if not extended.blocks:
            why = "".join(f"; {name!r} cannot be read ({reason})" for name, reason in extended.unreadable.items())
            raise ValueError(
                f"none of the {len(parameters)} parameters of the model is floating-point and non-empty{why}: there is "
                "no trajectory to record; add the callback to a model that has some."
            )
        cleaned = {clean_name(name): parameter for name, parameter in parameters.items()}
        for block, pieces in zip(self.blocks, self.partition.pieces, strict=True):
            missing = [piece.parameter for piece in pieces if piece.parameter not in cleaned]
            if set(missing) & self.ended:
                continue  # it left the model while it was recorded, and rests
            for name in missing:
                raise ValueError(
                    f"the trajectory so far has the parameter {name!r}, which the model lacks: resume with the same "
                    "model, or begin a new trajectory (without that of the checkpoint, if it is one)."
                )
            if (numel := sum(piece.numel(cleaned[piece.parameter]) for piece in pieces)) != block.numel:
                raise ValueError(
                    f"the checkpoint has a trajectory with {block.numel} entries in {block.name!r}, and the model has "
                    f"{numel}: resume with the same model, or without the checkpoint's trajectory."
                )

    def undeclared(self, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of parameters that look fused, and stay whole since their layout is neither known nor declared."""
        return self._extended(parameters).undeclared

    def prepare(self, parameters: Mapping[str, Tensor]) -> str:
        """Choose where rows are kept, and say in one line what recording will cost.

        Raises:
            ValueError: on all ranks alike, if they have other parameters, blocks or settings than each other.
        """
        partition = self._extended(parameters)
        self._compare(partition, parameters)
        recorded = partition.recorded(parameters)
        cost = cost_of(partition, recorded, self.snapshot, self.sketch, self.max_snapshots, self.window)
        # Before a lazy model has values, none of it is recorded.
        device = next((p.device for p in (*recorded.values(), *parameters.values())), torch.device("cpu"))
        if self.snapshot == "full" or device.type == "mps":  # files are read on the host; MPS has no float64
            device = torch.device("cpu")
        where = f"on disk, in {self.snapshots.folder}" if self.snapshot == "full" else "in memory"
        if device.type != "cpu" and cost.rows + cost.grams > ROW_BUDGET:
            self.storage = self.gram.storage = torch.device("cpu")
            where += f" of the host (above {in_bytes(ROW_BUDGET)} in all)"
        self.device = device
        if self.snapshot == "sketch":
            self.gram.to(device)
        self.path_lengths.to(device)
        self.windows.to(device)
        self._divide(partition, recorded)
        if (folder := self._unmapped) is not None:
            self.ranks.all_do(lambda: self._map_files(folder, parameters))
            self._unmapped = None
        number = int(self.ranks.each([uuid.uuid4().int >> 68])[0, 0])  # rank 0's
        self.snapshots.begin(number, self.ranks.rank, self.ranks.size)
        return cost.said(self.snapshot, where)

    # During training

    def record(self, parameters: Mapping[str, Tensor] | Exception, step: int, epoch: float) -> bool:
        """Take a snapshot of named parameters.

        Args:
            parameters: By qualified name. Blocks are made of the floating-point ones; new ones may come, and what is
                missing counts as unchanged. Or why they could not be read on this rank: it is raised, after the other
                ranks have been told.
            step: Optimizer steps taken.
            epoch: Completed epochs, fractional within one.

        Returns:
            False where this (step, epoch) has been recorded already.

        Raises:
            ValueError: a parameter has changed its size.
            OSError: a full snapshot could not be written.
            FloatingPointError: a full snapshot, or one with new parameters, has a non-finite entry or failed on
                another rank.
        """
        key = (step, epoch)
        if self.latest_key is not None and key <= self.latest_key:
            return False
        if self._left_out_any and self.ranks.size > 1:
            self._leave_out_failing()
        while not self._is_lost:
            try:
                return self._take(parameters, key)
            except UnreadableError as error:
                if self.ranks.size > 1:  # others have left this snapshot out
                    raise
                self._leave_out(error.reasons)
        return False

    def request_window(self) -> None:
        """Have a window begin right before the next step, unless one is running."""
        if not self.windows.has_steps:
            self.windows.due = True

    def prepare_window(self, parameters: Mapping[str, Tensor]) -> None:
        """Take in the parameters right before an optimizer step.

        A window that is due begins at them. A running one goes on from them: something else than a step may have moved
        the parameters since the last step, and nothing short of their values tells.
        """
        if self.windows.due:
            self._with_row(parameters, None, self.windows.begin)
        elif self.windows.running:
            self._with_row(parameters, None, self.windows.shift)

    def begin_window(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Begin a window of consecutive optimizer steps at these parameters, right after ``step`` of them."""
        self._with_row(parameters, step, self.windows.begin)

    def add_to_window(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Take the parameters after a step into the running window, if there is one."""
        if self.windows.running:
            self._with_row(parameters, step, partial(self.windows.add, step=step))

    def cancel_window(self) -> None:
        """Forget the running window, if there is one."""
        with self._changing():
            self.windows.cancel()

    def end_window(self, step: int) -> None:
        """End the running window, if there is one, after so many optimizer steps."""
        with self._changing():
            self.windows.end(step)

    def collect(self, drop: bool = True) -> tuple[Trajectory, list[int]]:
        """The Trajectory so far, and the steps of snapshots that were dropped for being non-finite.

        Copies to the host what is new since the last call.

        Args:
            drop: Whether they are dropped from what is kept; on all ranks then, or what they keep comes apart.
                Otherwise they are but left out of the Trajectory.
        """
        unchanged = (
            self._mirror is not None
            and self._mirror.order == tuple(self.order)
            and (bool(self._mirror.finite.all()) or not drop)
        )
        if self._collected is not None and unchanged and self._collected.windows.steps == tuple(self.windows.steps):
            return self._collected, []
        mirror, windows = mirrored(self.order, self.gram, self.path_lengths.kept, self._mirror, self.windows.fresh())
        self.windows.landed(windows)
        good = np.flatnonzero(mirror.finite).tolist()
        dropped = [self.steps[i] for i in np.flatnonzero(~mirror.finite)]
        self._left_out_any |= drop and bool(dropped)
        if 0 not in good:  # without a finite θ_0 nothing is defined: start anew with the next snapshot
            good = []
        taken = mirror.taken(good)
        trajectory = Trajectory(
            blocks=self.blocks,
            steps=np.array(self.steps, dtype=np.int64)[good],
            epochs=np.array(self.epochs, dtype=np.float64)[good],
            anchored=taken.anchored,
            local=taken.local,
            paths=taken.paths,
            windows=Windows(
                self.windows.on_host(len(self.blocks)), tuple(self.windows.steps), tuple(self.windows.counts)
            ),
            settings={**self.settings, "root": self.partition.root},
        )
        if not self._is_lost:  # else it ends here, and is true up to here
            trajectory = without_blocks(trajectory, self.partition.lost)
        if not drop:
            self._mirror, self._collected = mirror, trajectory
            return trajectory, []
        if not good:
            self.clear()
            return trajectory, dropped
        if dropped:
            with self._changing():
                self._keep(good)
        self._mirror, self._collected = taken, trajectory
        return trajectory, dropped

    def rows(self) -> np.ndarray | None:
        """The kept sketches, θ_0 first and then displacements, float32 [n, k] on the host; None for full snapshots."""
        if self.snapshot != "sketch" or not self.blocks:
            return None
        base = self.gram.base.float().cpu()
        rows = torch.stack([base, *(_pad(row.cpu(), base.numel()) for row in self.gram.rows)])
        if self.partition.lost and not self._is_lost:
            by_block = torch.split(rows, list(self.gram.lengths), dim=1)
            rows = torch.cat([some for b, some in enumerate(by_block) if b not in self.partition.lost], dim=1)
        return rows.numpy()

    # State

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickles and deep copies hold: on the host, so that any machine can read it.

        Mapped files are left out, and opened again when the copy goes on recording.
        """
        gram, path_lengths, windows = _twin(self.gram), _twin(self.path_lengths), _twin(self.windows)
        for name in ("anchored", "local", "finite", "rows", "base", "latest", "before"):
            kept = getattr(gram, name)
            setattr(gram, name, [tensor.cpu() for tensor in kept] if isinstance(kept, list) else kept.cpu())
        path_lengths.to(torch.device("cpu"))
        windows.to(torch.device("cpu"))
        changed = {"gram": gram, "path_lengths": path_lengths, "windows": windows}
        if self.snapshot == "full" and len(self):
            gram.snapshots, gram.given = [], ([], [], [])
            changed["_unmapped"] = self._unmapped or self.snapshots.folder.absolute()
        return super().__getstate__() | changed

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as tensors and primitives; of full snapshots their index, not the files."""
        if self._settled is not None:
            return self._settled.state_dict()
        return {
            "format": FORMAT,
            "settings": self.settings,
            "blocks": [list(astuple(block)) for block in self.blocks],
            "pieces": [[asdict(piece) for piece in pieces] for pieces in self.partition.pieces],
            "root": self.partition.root,
            "unreadable": {
                piece.parameter: self.unreadable[piece.parameter]
                for pieces in self.partition.pieces
                for piece in pieces
                if piece.parameter in self.unreadable
            },
            "steps": list(self.steps),
            "epochs": list(self.epochs),
            "order": list(self.order),
            "files": list(self.files),
            "recent_files": list(self.recent_files),
            "base_files": list(self.base_files),
            "folder": str(self.snapshots.folder.absolute()),
            "paths": torch.stack(self.path_lengths.kept) if self.path_lengths.kept else torch.zeros(0),
            "path": self.path_lengths.latest,
            "scheduled": self.scheduled,
            "stride": self.stride,
            "windows": self.windows.state_dict(),
            "latest_key": self.latest_key,
            "gram": gram_state(self.gram),
        }

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor] | None = None) -> None:
        """Go on where ``state_dict`` was taken, on however many ranks that was.

        Args:
            state: Of any rank: it is the same on all.
            parameters: By qualified name; what full snapshots need where each rank has a part of them.

        Raises:
            ValueError: the settings differ from those of the state (the message says both values), or between ranks.
            FileNotFoundError: a full snapshot is missing.
            RuntimeError: full snapshots could not be read on another rank.
        """
        state = current_state(state)
        for setting, ours in self.settings.items():
            if setting == "sketch_dim" and self.sketch_dim is None:
                continue  # left at its default: the run goes on with the length that it has
            if (theirs := state["settings"].get(setting)) != ours:
                raise ValueError(
                    f"{setting}={ours!r} differs from {setting}={theirs!r}, with which the trajectory in the "
                    f"checkpoint was recorded: pass {setting}={theirs!r} to go on with it, or another name= to begin "
                    "a new one."
                )
        self.clear()
        self.sketch = CountSketch(state["settings"]["sketch_dim"], self.seed)
        self.partition = replace(
            self.partition,
            blocks=tuple(Block(*block) for block in state["blocks"]),
            pieces=tuple(tuple(piece_from_state(piece) for piece in pieces) for pieces in state["pieces"]),
            unreadable=dict(state.get("unreadable", {})),  # which older checkpoints lack
            root=state["root"],
        )
        for attribute in ("steps", "epochs", "order", "files", "recent_files", "base_files"):
            setattr(self, attribute, list(state[attribute]))
        self.scheduled, self.stride = state["scheduled"], state["stride"]
        self.path_lengths.kept, self.path_lengths.latest = list(state["paths"]), state["path"]
        self.path_lengths.regroup(self.blocks, self.device)
        self.latest_key = None if state["latest_key"] is None else tuple(state["latest_key"])
        load_gram(self.gram, state["gram"], self._sizes(self.blocks))
        self.windows.load_state_dict(state["windows"])
        if self.snapshot == "full":
            self._compare(self.partition, parameters or {})
            self._divide(self.partition, parameters or {})
            self.ranks.all_do(lambda: self._map_files(Path(state["folder"]), parameters or {}))

    def _map_files(self, formerly: Path, parameters: Mapping[str, Tensor]) -> None:
        names = {*self.files, *self.recent_files, *self.base_files}
        held = self.partition.held(parameters, self._division.shares) if self.ranks.size > 1 else None
        mapped = self.full.read(names, formerly, self.partition, held, self.ranks.rank)
        blocks = [block.name for block in self.blocks]
        base = {block: mapped[file][block] for block, file in zip(blocks, self.base_files, strict=True)}
        # A snapshot that is older than a block has its first value.
        recent = [[mapped[file].get(block, base[block]) for block in blocks] for file in self.recent_files]
        self.gram.lengths = tuple(entries.numel() for entries in base.values())
        self.gram.snapshots = [
            [mapped[file][block] for block in blocks if block in mapped[file]] for file in self.files
        ]
        self.gram.given = list(base.values()), recent[-1], recent[0]
        self.gram.newest = self.gram.local[-1]

    # Inside

    def _take(self, parameters: Mapping[str, Tensor] | Exception, key: tuple[int, float]) -> bool:
        """Take a snapshot; False where there is nothing to take."""
        given, partition, summed = parameters, self.partition, None
        try:
            partition = self._extended(_read(parameters))
            parameters = partition.recorded(_read(parameters))
        except Exception as error:  # other ranks count on this one
            parameters = error
        if not self.blocks:  # what is summed depends on what was read
            self.ranks.all_do(partial(_read, parameters))
        grown = len(partition.blocks) > len(self.blocks) or len(partition.unreadable) > len(self.unreadable)
        if not isinstance(parameters, Exception) and (
            grown or (self.ranks.size > 1 and self._division.lacks(parameters))
        ):
            if self.blocks and (summed := self._ask()) is not None:
                partition = self.partition
            else:
                if grown and self.ranks.size > 1:
                    partition = self._agreed(partition, _read(given))
                    parameters = partition.recorded(_read(given))
                self._divide(partition, parameters)
        if not partition.blocks:
            self.partition = partition
            return False
        with self._changing(), self.ranks.alone():  # what fails here, fails after ranks have met
            failure = self._record(partition, parameters, key, summed)
        if failure is not None:  # left out, or recorded as non-finite, on all ranks alike
            raise failure
        return True

    # What cannot be read

    @property
    def _is_lost(self) -> bool:
        """Whether no block is left that can be read."""
        return bool(self.blocks) and len(self.partition.lost) == len(self.blocks)

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave out parameters that cannot be read, from here on: on all ranks alike."""
        if reasons:
            self.partition = replace(self.partition, unreadable={**self.unreadable, **reasons})
            self._sketched = self._collected = None

    def _leave_out_failing(self) -> None:
        """Leave out the parameters for which a rank has failed in snapshots that were left out."""
        names = sorted(piece.parameter for pieces in self.partition.pieces for piece in pieces)
        self._leave_out(self._found_anywhere(self._failing, names))
        self._failing, self._left_out_any = {}, False

    def _agreed(self, partition: Partition, parameters: Mapping[str, Tensor]) -> Partition:
        """The partition without the new parameters that cannot be read on some rank."""
        found = self._found_anywhere(partition.unreadable, [clean_name(name) for name in parameters])
        if found.keys() <= partition.unreadable.keys():
            return partition
        unreadable = {**self.unreadable, **found}
        model = None if self.model is None else self.model()
        return replace(self.partition, unreadable=unreadable).extended(parameters, model)

    def _found_anywhere(self, reasons: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
        """Of parameters of these names those that cannot be read on some rank. All ranks have to call it."""
        if self.ranks.size == 1 or not self.ranks.agree(names):  # ``prepare`` says so
            return dict(reasons)
        table = self.ranks.each([name in reasons for name in names])
        found = itertools.compress(names, table.any(dim=0).tolist())
        return {name: reasons.get(name, "it cannot be read on another process") for name in found}

    @contextmanager
    def _naming(self, partition: Partition, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Find the parameters because of which reading fails.

        Raises:
            UnreadableError: there are some.
        """
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reasons = partition.find_unreadable(parameters)  # also those that the error does not name
            if isinstance(error, UnreadableError):
                reasons.update(error.reasons)
            if not reasons:
                raise
            self._failing.update(reasons)
            raise UnreadableError(reasons) from error

    # Snapshots

    def _record(
        self,
        partition: Partition,
        parameters: Mapping[str, Tensor] | Exception,
        key: tuple[int, float],
        summed: Tensor | None,
    ) -> Exception | None:
        """Take a snapshot with these blocks, whose sum over ranks may be there; why it is not what it should be."""
        step, epoch = key
        new_blocks = len(partition.blocks) - len(self.blocks)
        file = None
        if self.snapshot == "full":
            file, failure = self._record_full(partition, parameters, step, summed)
            if failure is not None:
                return failure
        else:
            row, failure = self._sketch(partition, parameters, summed)
            # What is new counts from its first value on, and a rank may have failed: worth to wait for the device. But
            # for θ_0 on one rank, without which all begins anew.
            if new_blocks and (self.blocks or self.ranks.size > 1):
                new = row.flat[sum(self.gram.lengths) :]
                if not torch.isfinite(new).all():
                    self._left_out_any = True
                    return failure or self._left_out(step)
            self._sketched = (step, row, failure)
            self.gram.update(row)
        try:
            self.partition = partition
            if new_blocks:
                self.path_lengths.regroup(self.blocks, self.device)
                if self.snapshot == "full":
                    self._sketched = None  # of fewer blocks
            path = self.path_lengths.after(self.gram.local[-1][:, UPDATE, UPDATE].clamp_min(0))
        except BaseException:  # short of memory, or interrupted: what is kept has to stay of one length
            self.gram.keep(range(len(self.gram) - 1))
            raise
        self.path_lengths.add(path)
        self.steps.append(step)
        self.epochs.append(epoch)
        self.order.append(self.scheduled)
        if file is not None:
            self.files.append(file)
            self.recent_files = [*self.recent_files[-1:], file]
            self.base_files += [file] * new_blocks
        self.scheduled += 1
        self.latest_key = key
        keep, self.stride = thinned(self.order, self.stride, self.max_snapshots)
        self._keep(keep)
        return failure

    def _ask(self) -> Tensor | None:
        """Before sums of what is new: a rank that failed knows nothing of it, and has come for the usual one.

        Returns:
            That sum, if there is such a rank: what all take this snapshot for.
        """
        if self.ranks.size == 1:
            return None
        count = len(self.blocks)
        numel = self.gram.products_numel(count) if self.snapshot == "full" else self._sent(self.blocks)
        with self.ranks.alone():
            # Not zeros: a rank that knows of nothing new must not take the sum for a snapshot.
            usual = self.ranks.sum(self._filled(numel, torch.inf))
            return usual if torch.isnan(usual).any() else None

    def _filled(self, numel: int, value: float) -> Tensor:
        return torch.full((numel,), value, dtype=torch.float64, device=self.device)

    def _left_out(self, step: int) -> FloatingPointError:
        elsewhere = ", or failed on another process" if self.ranks.size > 1 else ""
        return FloatingPointError(f"the snapshot at step {step} has non-finite entries{elsewhere}: it is left out.")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is changed meanwhile is not seen by a checkpoint, which a signal may ask for at any moment."""
        settled = _twin(self)
        settled.gram, settled.path_lengths, settled.windows = (
            _twin(self.gram),
            _twin(self.path_lengths),
            _twin(self.windows),
        )
        self._settled = settled
        try:
            yield
        finally:
            self._settled = None

    def _compare(self, partition: Partition, parameters: Mapping[str, Tensor]) -> None:
        has_shape = {name for name, p in partition.recorded(parameters).items() if has_entries(p)}
        shapes = [(name, list(p.shape) if name in has_shape else None) for name, p in parameters.items()]
        self.ranks.compare({"parameters": shapes, **self.settings, "the blocks": list(partition.blocks)})

    def _extended(self, parameters: Mapping[str, Tensor]) -> Partition:
        return self.partition.extended(parameters, None if self.model is None else self.model())

    def _with_row(self, parameters: Mapping[str, Tensor], step: int | None, take: Callable[[Row], None]) -> None:
        """Take sketches of all blocks: those that a snapshot has just made after this step, or else new ones.

        Args:
            parameters: By qualified name.
            step: Right after which step; None: before one, when they may have been moved since the last snapshot.
            take: Where the sketches go.
        """
        if not self.blocks:  # before θ_0
            return
        if self._sketched is not None and self._sketched[0] != step:
            self._sketched = None
        while not self._is_lost:
            try:
                return self._take_row(self.partition.recorded(parameters), step, take)
            except UnreadableError as error:
                if self.ranks.size > 1:  # others have a row that is not finite
                    raise
                self._leave_out(error.reasons)

    def _take_row(self, parameters: Mapping[str, Tensor], step: int | None, take: Callable[[Row], None]) -> None:
        if self._sketched is None:
            self._divide(self.partition, parameters)
        with self._changing(), self.ranks.alone():
            if self._sketched is None:
                row, failure = self._sketch(self.partition, parameters)
                self._sketched = None if step is None else (step, row, failure)
            else:
                _, row, failure = self._sketched
            take(row)
        if failure is not None:
            raise failure

    def _divide(self, partition: Partition, parameters: Mapping[str, Tensor]) -> None:
        """Find out which entries this rank answers for: of plain parameters all, unless it pays to share them out."""
        sent = sum(self._sizes(partition.blocks))
        numel = sum(block.numel for block in partition.blocks)
        pays = numel >= DIVIDED[1] and numel >= DIVIDED[0] * sent
        self._division.follow(self.ranks, parameters, self.snapshot == "full" or pays)

    def _sketch(
        self, partition: Partition, parameters: Mapping[str, Tensor] | Exception, summed: Tensor | None = None
    ) -> tuple[Row, Exception | None]:
        """Sketches of all blocks, and what failed here: NaNs then, on all ranks.

        These meet once: for the sum of the sketches where the entries are divided, else of one number, which is 0, or
        NaN where one of them has failed or has entries that are not finite.
        """
        own: list[Tensor] = []

        def make() -> Tensor:
            own.append(self._own_sketches(partition, parameters))
            return own[0] if self._division.is_shared or self.ranks.size == 1 else (0 * own[0]).sum().view(1)

        sizes, failure = self._sizes(partition.blocks), None
        if summed is None:
            summed, failure = self.ranks.sum_of(make, self._filled(self._sent(partition.blocks), torch.nan))
        if own and self.ranks.size > 1 and not self._division.is_shared:
            summed = own[0] + summed
        return Row(summed.expand(sum(sizes)), sizes), failure

    def _sent(self, blocks: Sequence[Block]) -> int:
        """How many numbers of their sketches ranks sum."""
        return sum(self._sizes(blocks)) if self._division.is_shared else 1

    def _sizes(self, blocks: Iterable[Block]) -> tuple[int, ...]:
        """Lengths of their sketches."""
        return tuple(self.sketch.length(block.numel) for block in blocks)

    def _own_sketches(self, partition: Partition, parameters: Mapping[str, Tensor] | Exception) -> Tensor:
        """Sketches of what this rank answers for."""
        parameters = _read(parameters)
        shares = self._division.shares
        with self._naming(partition, parameters):
            return sketch_blocks(self.sketch, partition, parameters, shares, self._resting, self.device)

    def _resting(self, b: int) -> Tensor:
        """The last sketch of a block that is no more in the model, from one rank."""
        last = Row(self.gram.latest, self.gram.lengths) if self.snapshot == "sketch" else self.windows.last
        is_mine = self.ranks.rank == 0 or not self._division.is_shared
        if last is not None and b < len(last.lengths) and is_mine:
            return last.blocks()[b]
        return self._filled(self.sketch.length(self.blocks[b].numel), 0.0)

    def _record_full(
        self,
        partition: Partition,
        parameters: Mapping[str, Tensor] | Exception,
        step: int,
        products: Tensor | None = None,
    ) -> tuple[str, Exception | None]:
        """Write what this rank answers for, and take it in; the snapshot's name, or why there is none."""
        name = self.snapshots.next_name(step)
        row: list[Tensor] = []

        def own() -> Tensor:
            given = _read(parameters)
            with self._naming(partition, given):
                held = partition.held(given, self._division.shares)
                row.extend(self.full.write(name, step, partition, held, self.gram.given[1]))
            return self.gram.products(row)

        failure, finite = None, False
        try:
            if products is None:
                blank = self._filled(self.gram.products_numel(len(partition.blocks)), torch.nan)
                products, failure = self.ranks.sum_of(own, blank)
            finite = bool(torch.isfinite(products).all())  # on all ranks
        finally:
            if not finite:
                self.snapshots.discard(name)
        if not finite:
            self._left_out_any = True
            return "", failure or self._left_out(step)
        self.gram.update(row, products)  # should it fail, others have this snapshot, of which the file is a part
        return name, None

    def _keep(self, indices: Iterable[int]) -> None:
        indices = list(indices)
        if len(indices) == len(self):
            return
        self.gram.keep(indices)
        self.path_lengths.keep(indices)
        for attribute in ("steps", "epochs", "order", "files"):
            if values := getattr(self, attribute):
                setattr(self, attribute, [values[i] for i in indices])


def _shallow(value: Any) -> Any:
    """A list of its own, with the same tensors in it; whatever else as it is."""
    return list(value) if isinstance(value, list) else value


def _twin(original: Object) -> Object:
    """A copy that shares everything but its lists."""
    twin = object.__new__(type(original))
    twin.__dict__.update({name: _shallow(value) for name, value in vars(original).items()})
    return twin


def _read(parameters: Mapping[str, Tensor] | Exception) -> Mapping[str, Tensor]:
    """The parameters, if they could be read."""
    if isinstance(parameters, Exception):
        raise parameters
    return parameters


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.numel()))
