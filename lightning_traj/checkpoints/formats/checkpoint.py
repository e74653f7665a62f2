"""One checkpoint on disk: its named tensors, and when in training it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_traj.blocks import clean_name
from lightning_traj.checkpoints.formats.errors import CheckpointError, unreadable
from lightning_traj.checkpoints.formats.sources import Source
from lightning_traj.checkpoints.hyperparameters import hyperparameters_beside, plain_hyperparameters

Weights = Literal["raw", "average"]


@dataclass(frozen=True)
class Contents:
    """Contents of a file or folder, as the reader of its format finds them.

    Attributes:
        source: Source of the tensors.
        said: Values beside the tensors, some of which date the checkpoint or are hyperparameters.
        averaged: Whether these are averaged weights, as far as the file tells.
        config: Config of a Hugging Face folder; empty for others.
        objects: Number of objects of each class that are in the file and were not read.
        unread: Names of tensors in the state dict that cannot be read, with the function that would make them.
    """

    source: Source
    said: Mapping[str, Any] = field(default_factory=dict)
    averaged: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A checkpoint, whose tensors are read when they are used.

    Attributes:
        path: The file or folder.
        source: Source of the tensors.
        step: Optimizer steps taken when it was written; None if neither the file nor its name says so.
        epoch: Completed epochs, with a fraction where transformers' Trainer wrote one; None if nothing is known, or
            only that an epoch was running. If the step is not known either, the epoch that the file or its name
            says, whatever is counted.
        number: Number in its name that may count steps or epochs; None if the step is known, or there is none.
        averaged: Whether these are averaged weights, as far as the file tells.
        config: The config.json of a Hugging Face folder; empty for others.
        logged: Hyperparameters in the file, flat.
        objects: Number of objects of each class that are in the file and were not read.
        unread: Names of tensors in the state dict that cannot be read, with the function that would make them.
        shapes: All tensors on the meta device, by their names, free of ``_orig_mod.``.
        compiled: Whether names in the file have ``_orig_mod.``.
    """

    path: Path
    source: Source
    step: int | None = None
    epoch: int | float | None = None
    number: int | None = None
    averaged: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.source.shapes()
        self._names = {clean_name(name): name for name in shapes}
        self.compiled = any(name != raw for name, raw in self._names.items())
        self.shapes: Mapping[str, Tensor] = {name: shapes[raw] for name, raw in self._names.items()}
        if not self._names:
            raise CheckpointError("it holds no tensors")

    def read(self, name: str) -> Tensor:
        """Return a tensor, most often a view of the mapped file.

        Raises:
            CheckpointError: It cannot be read.
        """
        try:
            return self.source.read(self._names[name])
        except Exception as error:
            raise unreadable(self.path, error) from error

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names.

        Args:
            names: New names by the present ones; tensors that are not in it keep theirs.
        """
        self._names = {names.get(name, name): raw for name, raw in self._names.items()}
        self.shapes = {names.get(name, name): like for name, like in self.shapes.items()}

    @cached_property
    def hyperparameters(self) -> dict[str, int | float | bool | str]:
        """Plain hyperparameters of the run, nested ones as ``a/b``, from the file or an hparams.yaml near it.

        Raises:
            ValueError: There is an hparams.yaml beside it or in the folder above, and it cannot be read.
        """
        return plain_hyperparameters(self.logged or hyperparameters_beside(self.path))

    def release(self) -> None:
        """Close its files; they are opened again when they are used."""
        self.source.release()
