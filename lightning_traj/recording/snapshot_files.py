"""Full snapshots on disk: write-once safetensors files, mapped into memory when they are read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.files import replace_atomically
from lightning_traj.tensors import IndexRegion, overlaps, whole

Shares = Mapping[str, Sequence[IndexRegion]]  # of each block: what is there of each of its tensors


class SnapshotFiles:
    """A folder of full snapshots: the real entries of every block, by block name, in their own dtype.

    Each process writes a file of its own with the entries that it answers for, and which these are. A snapshot goes by
    the name of rank 0's file. A file is never changed, and never deleted once it is part of a snapshot, since an
    older checkpoint may still refer to it. Names are unique over runs: one that is resumed twice from one checkpoint
    doesn't overwrite its sibling's files.

    Args:
        folder: Folder in which snapshots are written, and looked for first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = ""
        self.rank, self.size = 0, 1
        self.begin(uuid.uuid4().int)

    def begin(self, number: int, rank: int = 0, size: int = 1) -> None:
        """Begin a run.

        Args:
            number: Random number that all processes of the run share.
            rank: Rank of this process.
            size: Number of processes.
        """
        self.run_id = f"{number:x}"[:12]
        self.rank, self.size = rank, size
        self._named = 0

    def next_name(self, step: int) -> str:
        """Return the name of the next snapshot, which is the same on all ranks."""
        self._named += 1
        return f"{self.run_id}-{self._named:06d}-step{step:09d}.safetensors"

    def write(self, name: str, entries: Mapping[str, Tensor], shares: Shares) -> dict[str, Tensor]:
        """Write this process's part of a snapshot, and return its blocks as they lie in the file, 1-D each.

        Raises:
            OSError: the file could not be written; nothing is left behind.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        flat = {block: tensor.reshape(-1).cpu().contiguous() for block, tensor in entries.items()}
        path = self.folder / _of_rank(name, self.rank)
        held = {block: [[share.shape, share.runs] for share in shares[block]] for block in flat}
        try:
            with replace_atomically(path) as temporary:
                save_file(flat, temporary, metadata={"processes": str(self.size), "held": json.dumps(held)})
        except SafetensorError as error:  # what a full disk is called there
            raise OSError(f"cannot write the snapshot {path}: {error}") from error
        return _File(path).blocks

    def discard(self, name: str) -> None:
        """Delete this process's part of a snapshot, since another process could not write its own."""
        (self.folder / _of_rank(name, self.rank)).unlink(missing_ok=True)

    def read(
        self, names: Iterable[str], formerly: Path, rank: int = 0, wanted: Shares | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the blocks of snapshots, 1-D each, by the names of both. They are mapped, and read when they are used.

        Args:
            names: Names of the snapshots.
            formerly: Folder in which they were written, where they are looked for after ``folder``.
            rank: Rank of this process, whose own files are preferred.
            wanted: Entries that are wanted, whichever process wrote them; default: all.

        Raises:
            FileNotFoundError: a snapshot is in neither folder, or a part of it is missing.
        """
        find = cache(_stretches)  # most snapshots have their entries where the one before has them
        return {name: self._read(name, formerly, rank, wanted, find) for name in names}

    def _read(
        self, name: str, formerly: Path, rank: int, wanted: Shares | None, find: Callable[..., Any]
    ) -> dict[str, Any]:
        first = self._find(name, formerly)
        files = {0: first}

        def file(of: int) -> _File:
            if of not in files:
                files[of] = self._find(_of_rank(name, of), formerly)
            return files[of]

        own = file(rank) if rank < first.processes else first
        found: dict[str, Any] = {}
        for block in first.blocks:
            shares = wanted[block] if wanted else [whole(share.shape) for share in first.shares[block]]
            if own.shares[block] == list(shares):
                found[block] = own.blocks[block]
            else:
                found[block] = _gathered(shares, block, [file(of) for of in range(first.processes)], find)
        return found

    def _find(self, name: str, formerly: Path) -> _File:
        for folder in (self.folder, formerly):
            if (folder / name).is_file():
                return _File(folder / name)
        raise FileNotFoundError(
            f"the full snapshot {name} of the trajectory in the checkpoint is neither in {self.folder} nor in "
            f"{formerly}: pass the dirpath under which the run that wrote it keeps its folder of snapshots."
        )


class ScatteredTensor:
    """Entries that lie in several files, or in pieces, as one 1-D tensor. They are gathered when they are used.

    Args:
        stretches: int64 [stretches, 4], ascending: where each begins, which source has it and where, its length.
        sources: 1-D tensors.
    """

    def __init__(self, stretches: NDArray[np.int64], sources: Sequence[Tensor]) -> None:
        self.stretches, self.sources = stretches, sources
        self.device, self.dtype = sources[0].device, sources[0].dtype

    def numel(self) -> int:
        """Return the number of entries."""
        return int(self.stretches[:, 3].sum())

    def __getitem__(self, chunk: slice) -> Tensor:
        """Return a slice without steps as a tensor of its own."""
        first, last, _ = chunk.indices(self.numel())
        at = np.searchsorted(self.stretches[:, 0], first, side="right") - 1
        stop = np.searchsorted(self.stretches[:, 0], last)
        pieces = [
            self.sources[source][begin + max(first - start, 0) : begin + min(last - start, length)]
            for start, source, begin, length in self.stretches[at:stop].tolist()
        ]
        return torch.cat([torch.empty(0, dtype=self.dtype), *pieces])


class _File:
    """One process's file of a snapshot. Its blocks are views of the mapped file, and only used parts are read."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self.blocks = {name: torch.as_tensor(file.get_tensor(name)) for name in list(file.keys())}
            metadata = file.metadata()
        self.processes = int(metadata["processes"])
        self.shares = {
            block: [
                IndexRegion(tuple(shape), tuple(tuple((a, b, c) for a, b, c in along) for along in runs))
                for shape, runs in shares
            ]
            for block, shares in json.loads(metadata["held"]).items()
        }


def _of_rank(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name.removesuffix('.safetensors')}.{rank}.safetensors"


def _gathered(wanted: Sequence[IndexRegion], block: str, files: Sequence[_File], find: Callable[..., Any]) -> Any:
    """Return the wanted entries of a block from the places that ``find`` returns, as ``_stretches`` does."""
    stretches, found = find(tuple(wanted), tuple(tuple(file.shares[block]) for file in files))
    numel = sum(prod(share.sizes) for share in wanted)
    begins = np.cumsum(stretches[:, 3]) - stretches[:, 3]
    if stretches[:, 3].sum() != numel or (begins != stretches[:, 0]).any():
        raise ValueError(f"a full snapshot has other entries of {block!r} than the model: resume with the same model.")
    if not numel:
        return files[0].blocks[block][:0]
    return ScatteredTensor(stretches, [files[i].blocks[block] for i in found])


def _stretches(
    wanted: tuple[IndexRegion, ...], held: tuple[tuple[IndexRegion, ...], ...]
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return the places of wanted entries, as ``ScatteredTensor`` takes them, and the indices of its sources."""
    tables = [np.zeros((0, 4), dtype=np.int64)]
    found: list[int] = []
    for i, shares in enumerate(held):
        common = overlaps(wanted, shares)
        if len(common):
            tables.append(np.insert(common, 1, len(found), axis=1))
            found.append(i)
    stretches = np.concatenate(tables)
    return stretches[np.argsort(stretches[:, 0])], tuple(found)
