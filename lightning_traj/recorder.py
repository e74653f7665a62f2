"""Parameters -> rows -> running Gram matrix -> Trajectory. Knows no Lightning; serves training and files alike."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_traj.blocks import (
    Block,
    Patterns,
    block_entries,
    block_groups,
    check_patterns,
    clean_name,
    is_wanted,
    make_block,
)
from lightning_traj.gram import UPDATE, RunningGram
from lightning_traj.sketch import CountSketch
from lightning_traj.snapshots import SnapshotFiles
from lightning_traj.trajectory import Trajectory

ROW_BUDGET = 2**30  # bytes: what would pass it is kept on the host instead of an accelerator
GRAM_STATES = {"full": ("local", "finite"), "sketch": ("local", "finite", "base", "rows", "latest", "before")}


class Recorder:
    """Records snapshots of parameters, and gives the Trajectory so far.

    Recording a sketched snapshot never waits for the device; ``collect`` copies the new Gram rows to the host, once.

    Args:
        snapshot: ``"sketch"`` or ``"full"``.
        sketch_dim: Length of the sketch of a block.
        include, exclude: Glob patterns over block names: what is recorded; None includes all, excludes none.
        max_snapshots: Past this many, every second one between the first and the latest is dropped, and from
            then on every second one is kept.
        seed: Of the sketch.
        folder: Where full snapshots go.
    """

    def __init__(
        self,
        *,
        snapshot: str = "sketch",
        sketch_dim: int = 2048,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        max_snapshots: int = 256,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.sketch = CountSketch(sketch_dim, seed)
        self.include, self.exclude = include, exclude
        self.max_snapshots = max_snapshots
        self.snapshots = SnapshotFiles(folder or Path.cwd())
        self.device = torch.device("cpu")
        self.storage: torch.device | None = None  # where rows are kept, if not on the device
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded: the next snapshot is a new θ_0."""
        self.gram = RunningGram(exact=self.snapshot == "full", storage=self.storage)
        self.blocks: list[Block] = []
        self.steps: list[int] = []
        self.epochs: list[float] = []
        self.order: list[int] = []  # of the kept snapshots: which of all scheduled ones they are
        self.files: list[str] = []  # of full snapshots: the kept ones, the last two scheduled, each block's first
        self.recent_files: list[str] = []
        self.base_files: list[str] = []
        self.paths: list[Tensor] = []
        self.path: Tensor | None = None  # up to the latest scheduled snapshot, whether or not it is kept
        self.scheduled = 0
        self.stride = 1
        self.latest_key: tuple[int, float] | None = None
        self._frozen: dict[str, tuple[weakref.ref[Tensor], int, Tensor]] = {}  # tensor, version, sketch
        self._membership = torch.zeros(0, 0, dtype=torch.float64)
        self._groups: list[str] = []
        self._host: tuple[list[int], Trajectory] | None = None  # what was collected last, and its order

    def __len__(self) -> int:
        return len(self.order)

    @property
    def settings(self) -> dict[str, Any]:
        """What has to stay the same for a run to go on: plain values."""
        return {
            "snapshot": self.snapshot,
            "sketch_dim": self.sketch.dim,
            "seed": self.sketch.seed,
            "include": _plain(self.include),
            "exclude": _plain(self.exclude),
            "max_snapshots": self.max_snapshots,
        }

    # Before training

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ValueError: nothing to record, a pattern without a match, blocks that differ from a resumed run's."""
        names = [clean_name(name) for name in parameters]
        check_patterns("include", self.include, names)
        check_patterns("exclude", self.exclude, names)
        if names and not any(is_wanted(name, self.include, self.exclude) for name in names):
            raise ValueError(
                f"include={self.include!r}, exclude={self.exclude!r} leave none of {len(names)} parameters: "
                "record at least one."
            )
        lazy = any(torch.nn.parameter.is_lazy(parameter) for parameter in parameters.values())
        entries = self._entries(parameters)
        if not entries and not lazy:
            raise ValueError(
                f"none of the {len(names)} parameters of the model is floating-point and non-empty: there is no "
                "trajectory to record; add the callback to a model that has some."
            )
        for block in self.blocks if not lazy else ():
            if block.name not in entries:
                raise ValueError(
                    f"the checkpoint has a trajectory with the parameter {block.name!r}, which the model lacks: "
                    "resume with the same model, or without the checkpoint's trajectory."
                )
            if (numel := entries[block.name].numel()) != block.numel:
                raise ValueError(
                    f"the checkpoint has a trajectory with {block.numel} entries in {block.name!r}, and the model has "
                    f"{numel}: resume with the same model, or without the checkpoint's trajectory."
                )

    def prepare(self, parameters: Mapping[str, Tensor]) -> str:
        """Choose where rows are kept, and say in one line what recording will cost."""
        blocks = {
            name: (entries.numel(), entries.element_size()) for name, entries in self._entries(parameters).items()
        }
        count, numel = len(blocks), sum(size for size, _ in blocks.values())
        n = self.max_snapshots
        grams = count * n * (8 * n + 128 + 16)  # Gram matrices, local ones, path lengths
        rows = 0
        if self.snapshot == "full":
            per_snapshot = sum(size * width for size, width in blocks.values())
            where = f"on disk, in {self.snapshots.folder}"
        else:
            per_snapshot = sum(4 * min(size, self.sketch.dim) for size, _ in blocks.values())
            rows = (n + 6) * per_snapshot  # and θ_0 and the last two in float64
            where = "in memory"
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        if self.snapshot == "full" or device.type == "mps":  # files are read on the host; MPS has no float64
            device = torch.device("cpu")
        if device.type != "cpu" and rows + grams > ROW_BUDGET:
            self.storage = self.gram.storage = torch.device("cpu")
            where += f" of the host (above {_bytes(ROW_BUDGET)} in all)"
        self.device = device
        self.gram.to(device)
        self.paths = [path.to(device) for path in self.paths]
        self.path = None if self.path is None else self.path.to(device)
        self._group()
        what = f"recording {count} blocks, {numel:,} parameters as {self.snapshot} snapshots"
        # The host has a copy of the Gram matrices.
        total = f"{_bytes(rows + grams)} at most in each checkpoint, {_bytes(rows + 2 * grams)} in memory"
        return f"{what}: {_bytes(per_snapshot)} a snapshot {where}; {total}"

    # During training

    def record(self, parameters: Mapping[str, Tensor], step: int, epoch: float) -> bool:
        """Take a snapshot of named parameters.

        Args:
            parameters: By qualified name. Blocks are made of the floating-point ones; new ones may come, and what is
                missing counts as unchanged.
            step: Optimizer steps taken.
            epoch: Completed epochs, fractional within one.

        Returns:
            False where this (step, epoch) has been recorded already.

        Raises:
            ValueError: a parameter has changed its size.
            OSError: a full snapshot could not be written.
        """
        key = (step, epoch)
        if self.latest_key is not None and key <= self.latest_key:
            return False
        entries = self._entries(parameters)
        known = {block.name: block.numel for block in self.blocks}
        for name, numel in known.items():
            if name in entries and entries[name].numel() != numel:
                raise ValueError(f"parameter {name!r} had {numel} entries and now has {entries[name].numel()}.")
        new_blocks = [make_block(name, tensor) for name, tensor in entries.items() if name not in known]
        blocks = [*self.blocks, *new_blocks]
        if not blocks:
            return False
        file = None
        if self.snapshot == "full":
            file, row = self._write(entries, blocks, step)
        else:
            row = self._sketch(parameters, entries, blocks)
        self.gram.update(row)
        if new_blocks:
            self.blocks = blocks
            self._group()
        updates = self.gram.local[-1][:, UPDATE, UPDATE].clamp_min(0)  # ‖u_t‖² of each block
        walked = torch.cat([self._membership @ updates, updates]).sqrt()
        self.path = walked if self.path is None else self.path + walked
        self.paths.append(self.path)
        self.steps.append(step)
        self.epochs.append(epoch)
        self.order.append(self.scheduled)
        if file is not None:
            self.files.append(file)
            self.recent_files = [*self.recent_files[-1:], file]
            self.base_files += [file] * len(new_blocks)
        self.scheduled += 1
        self.latest_key = key
        last = len(self) - 1
        # A snapshot off the stride is kept only as long as it is the latest.
        if last > 1 and self.order[last - 1] % self.stride:
            self._keep([*range(last - 1), last])
        if len(self) > self.max_snapshots:
            self.stride *= 2
            last = len(self) - 1
            self._keep([i for i, order in enumerate(self.order) if order % self.stride == 0 or i == last])
        return True

    def collect(self) -> tuple[Trajectory, list[int]]:
        """The Trajectory so far, and the steps of snapshots that were dropped for being non-finite.

        Copies to the host what is new since the last call: Gram rows, local Gram matrices, path lengths, in one piece.
        """
        if self._host is not None and self._host[0] == self.order:
            return self._host[1], []
        n, b, groups = len(self), len(self.blocks), len(block_groups(self.blocks))
        known, previous = self._host if self._host and len(self._host[1].blocks) == b else ([], None)
        first = len(set(known).intersection(self.order))  # what is new comes last
        device_part = torch.cat(
            [
                torch.stack(self.gram.finite[first:]).double(),
                *(_pad(local.flatten(), b * 16) for local in self.gram.local[first:]),
                *self.paths[first:],
            ]
        )
        new_rows = self.gram.compute_anchored()[:, first:, :].flatten()
        if self.gram.storage is None:
            flat = torch.cat([device_part, new_rows]).cpu()
            device_part, new_rows = flat[: device_part.numel()], flat[device_part.numel() :]
        else:  # the Gram matrix is on the host already
            device_part = device_part.cpu()
        finite, local, path = (
            part.numpy() for part in torch.split(device_part, [n - first, (n - first) * b * 16, (n - first) * groups])
        )
        anchored = np.zeros((b, n, n))
        anchored[:, first:, :] = new_rows.numpy().reshape(b, n - first, n)
        anchored[:, :, first:] = anchored[:, first:, :].swapaxes(1, 2)
        local = local.reshape(n - first, b, 4, 4)
        path = path.reshape(n - first, groups)
        if previous is not None:
            at = [known.index(order) for order in self.order[:first]]
            anchored[:, :first, :first] = previous.anchored[:, at][:, :, at]
            local = np.concatenate([previous.local[at], local])
            path = np.concatenate([previous.paths[at], path])
        trajectory = Trajectory(
            blocks=tuple(self.blocks),
            steps=np.array(self.steps, dtype=np.int64),
            epochs=np.array(self.epochs, dtype=np.float64),
            anchored=anchored,
            local=local,
            paths=path,
            settings=self.settings,
        )
        good = [i for i in range(n) if i < first or finite[i - first]]
        dropped = [self.steps[i] for i in range(n) if i not in set(good)]
        if dropped and 0 not in good:  # without a finite θ_0 nothing is defined: start anew with the next snapshot
            self.clear()
            return _take(trajectory, []), dropped
        if dropped:
            self._keep(good)
            trajectory = _take(trajectory, good)
        self._host = (list(self.order), trajectory)
        return trajectory, dropped

    def rows(self) -> np.ndarray | None:
        """The kept sketches, θ_0 first and then displacements, float32 [n, k] on the host; None for full snapshots."""
        if self.snapshot != "sketch" or not self.gram.base:
            return None
        base = torch.cat(self.gram.base).float().cpu()
        return torch.stack([base, *(_pad(row.cpu(), base.numel()) for row in self.gram.rows)]).numpy()

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as tensors and primitives; of full snapshots their index, not the files."""
        return {
            "settings": self.settings,
            "blocks": [list(astuple(block)) for block in self.blocks],
            "steps": list(self.steps),
            "epochs": list(self.epochs),
            "order": list(self.order),
            "files": list(self.files),
            "recent_files": list(self.recent_files),
            "base_files": list(self.base_files),
            "folder": str(self.snapshots.folder.absolute()),
            "paths": list(self.paths),
            "path": self.path,
            "scheduled": self.scheduled,
            "stride": self.stride,
            "latest_key": self.latest_key,
            "anchored": self.gram.compute_anchored(),
            "gram": {state: list(getattr(self.gram, state)) for state in GRAM_STATES[self.snapshot]},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ValueError: the settings differ from those of the state; the message says both values.
            FileNotFoundError: a full snapshot is missing.
        """
        for setting, ours in self.settings.items():
            if (theirs := state["settings"].get(setting)) != ours:
                raise ValueError(
                    f"{setting}={ours!r} differs from {setting}={theirs!r}, with which the trajectory in the "
                    f"checkpoint was recorded: pass {setting}={theirs!r} to go on with it, or another name= to begin "
                    "a new one."
                )
        self.clear()
        self.blocks = [Block(*block) for block in state["blocks"]]
        self._group()
        for attribute in ("steps", "epochs", "order", "files", "recent_files", "base_files", "paths"):
            setattr(self, attribute, list(state[attribute]))
        self.path, self.scheduled, self.stride = state["path"], state["scheduled"], state["stride"]
        self.latest_key = None if state["latest_key"] is None else tuple(state["latest_key"])
        for name, values in state["gram"].items():
            setattr(self.gram, name, list(values))
        self.gram.anchored = state["anchored"]
        if self.snapshot == "full":
            self._map_files(Path(state["folder"]))

    def _map_files(self, formerly: Path) -> None:
        names = {*self.files, *self.recent_files, *self.base_files}
        mapped = {name: self.snapshots.read(name, formerly) for name in names}
        blocks = [block.name for block in self.blocks]
        base = {block: mapped[file][block] for block, file in zip(blocks, self.base_files, strict=True)}
        # A snapshot that is older than a block has its first value.
        recent = [[mapped[file].get(block, base[block]) for block in blocks] for file in self.recent_files]
        self.gram.base = list(base.values())
        self.gram.snapshots = [
            [mapped[file][block] for block in blocks if block in mapped[file]] for file in self.files
        ]
        self.gram.before, self.gram.latest = (list(row) for row in (recent[:1] + recent[-1:]))

    # Inside

    def _entries(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of the parameters that are recorded, by block name."""
        entries = ((clean_name(name), block_entries(parameter)) for name, parameter in parameters.items())
        return {
            name: tensor
            for name, tensor in entries
            if tensor is not None and is_wanted(name, self.include, self.exclude)
        }

    def _sketch(
        self, parameters: Mapping[str, Tensor], entries: Mapping[str, Tensor], blocks: Sequence[Block]
    ) -> list[Tensor]:
        originals = {clean_name(name): parameter for name, parameter in parameters.items()}
        row, frozen = [], {}
        for b, block in enumerate(blocks):
            tensor = originals.get(block.name)
            if tensor is None or block.name not in entries:  # taken out of the model: it moves no more
                row.append(self.gram.latest[b])
                continue
            if not (tensor.requires_grad or tensor.is_inference()):  # inference tensors have no version
                # Trusted for frozen tensors alone: fused optimizers and .data change values without the counter.
                seen = self._frozen.get(block.name)
                if seen is not None and seen[0]() is tensor and seen[1] == tensor._version:
                    frozen[block.name] = seen
                    row.append(seen[2])
                    continue
            entry = entries[block.name]
            row.append(self.sketch(entry.cpu() if entry.device.type == "mps" else entry, block.name).to(self.device))
            if not (tensor.requires_grad or tensor.is_inference()):
                frozen[block.name] = (weakref.ref(tensor), tensor._version, row[-1])
        self._frozen = frozen
        return row

    def _write(self, entries: Mapping[str, Tensor], blocks: Sequence[Block], step: int) -> tuple[str, list[Tensor]]:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in entries.values()):
            raise FloatingPointError(f"the snapshot at step {step} has non-finite entries: it is left out.")
        gone = {block.name: self.gram.latest[b] for b, block in enumerate(self.blocks) if block.name not in entries}
        name, written = self.snapshots.write({**entries, **gone}, step)
        return name, [written[block.name] for block in blocks]

    def _group(self) -> None:
        """Which blocks are added up for the path lengths of ``block_groups``; those of single blocks come last."""
        groups = block_groups(self.blocks)
        before = self._groups
        self._groups = list(groups)
        sums = list(groups.values())[: len(groups) - len(self.blocks)]
        membership = torch.zeros(len(sums), len(self.blocks), dtype=torch.float64)
        for row, members in enumerate(sums):
            membership[row, members] = 1.0
        self._membership = membership.to(self.device)
        if self.path is not None and before != self._groups:  # blocks were added: what is new has not moved so far
            at = torch.tensor([self._groups.index(group) for group in before], device=self.path.device)
            *self.paths, self.path = (
                path.new_zeros(len(groups)).index_copy(0, at, path) for path in (*self.paths, self.path)
            )

    def _keep(self, indices: Iterable[int]) -> None:
        indices = list(indices)
        self.gram.keep(indices)
        for attribute in ("steps", "epochs", "order", "paths", "files"):
            if values := getattr(self, attribute):
                setattr(self, attribute, [values[i] for i in indices])


def _take(trajectory: Trajectory, indices: Sequence[int]) -> Trajectory:
    """The trajectory of these snapshots alone."""
    at = np.array(indices, dtype=np.int64)
    return replace(
        trajectory,
        steps=trajectory.steps[at],
        epochs=trajectory.epochs[at],
        anchored=trajectory.anchored[:, at][:, :, at],
        local=trajectory.local[at],
        paths=trajectory.paths[at],
    )


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.numel()))


def _plain(patterns: Patterns | None) -> str | list[str] | None:
    return patterns if patterns is None or isinstance(patterns, str) else list(patterns)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
