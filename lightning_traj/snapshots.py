"""Full snapshots on disk: write-once safetensors files, mapped into memory when they are read."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_traj.files import replace_atomically


class SnapshotFiles:
    """A folder of full snapshots, one file each: the real entries of every block, by block name, in their own dtype.

    A file is never changed or deleted, since an older checkpoint may still refer to it. Names are unique over
    processes: a run that is resumed twice from one checkpoint doesn't overwrite its sibling's files.

    Args:
        folder: Where snapshots are written, and first looked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = uuid.uuid4().hex[:12]

    def write(self, entries: Mapping[str, Tensor], step: int) -> tuple[str, dict[str, Tensor]]:
        """Write a snapshot; return its file's name, and its blocks as they lie in the file, 1-D each.

        Raises:
            OSError: the file could not be written; nothing is left behind.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = f"{self.run_id}-{uuid.uuid4().hex[:6]}-step{step:09d}.safetensors"
        flat = {block: tensor.reshape(-1).cpu().contiguous() for block, tensor in entries.items()}
        try:
            with replace_atomically(self.folder / name) as temporary:
                save_file(flat, temporary, metadata={"step": str(step)})
        except SafetensorError as error:  # what a full disk is called there
            raise OSError(f"cannot write the snapshot {self.folder / name}: {error}") from error
        return name, _mapped(self.folder / name)

    def read(self, name: str, formerly: Path) -> dict[str, Tensor]:
        """The blocks of a snapshot as they lie in its file, 1-D each: mapped, and read when they are used.

        Args:
            name: As ``write`` returned it.
            formerly: The folder where it was written: looked in after ``folder``.

        Raises:
            FileNotFoundError: the snapshot is in neither folder.
        """
        for folder in (self.folder, formerly):
            if (folder / name).is_file():
                return _mapped(folder / name)
        raise FileNotFoundError(
            f"the full snapshot {name} of the trajectory in the checkpoint is neither in {self.folder} nor in "
            f"{formerly}: pass the dirpath under which the run that wrote it keeps its folder of snapshots."
        )


def _mapped(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file as views of the mapped file: read when used, and only what is used."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: torch.as_tensor(file.get_tensor(name)) for name in list(file.keys())}
