"""Provenance of a trajectory: the settings of its recording, the checkpoints that were read, and their flaws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lightning_traj.measures import FLOAT32

Severity = Literal["error", "warning", "note"]
FindingKind = Literal[
    "unreadable",  # a checkpoint that could not be read
    "order",  # the given order contradicts the numbers in names
    "left out",  # a checkpoint that was read and not used
    "guess",  # dates that had to be guessed
    "names",  # names of parameters that were unified
    "parameters",  # parameters that are not counted, or not split
    "objects",  # objects beside the tensors
    "start",  # the first checkpoint is not the initialisation
    "average",  # averaged weights among raw ones
    "gap",  # steps between which checkpoints are missing
    "precision",  # several precisions
    "missing",  # parameters that only some checkpoints have
    "duplicate",  # checkpoints with the same weights
    "off the path",  # a checkpoint far from its neighbours
    "other",  # a finding of a file that was saved without kinds
]
_SEVERITIES: Mapping[str, Severity] = {"unreadable": "error", "order": "warning"}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the checkpoints of a run, or that had to be guessed.

    Attributes:
        kind: Kind of the finding, by which programs tell findings apart.
        text: The finding as a sentence.
    """

    kind: FindingKind
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def severity(self) -> Severity:
        """``"error"`` if data is missing, ``"warning"`` if all measures may be wrong, else ``"note"``."""
        return _SEVERITIES.get(self.kind, "note")


@dataclass(frozen=True)
class CheckpointSource:
    """The checkpoints from which a trajectory was made.

    Attributes:
        paths: Paths of the checkpoints, in order.
        hyperparameters: Hyperparameters of the run, flat.
        left_out: Tensors that are no parameters, such as ``"1 running_mean"``; empty if there are none.
        rounding: Unit roundoff of the lowest precision in which parameters are stored.
        findings: Flaws of the checkpoints, and guesses about them.
    """

    paths: tuple[str, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    left_out: str = ""
    rounding: float = FLOAT32
    findings: tuple[Finding, ...] = ()

    def to_settings(self) -> dict[str, Any]:
        """Return the entries of ``Trajectory.settings`` for these checkpoints."""
        return {
            "checkpoints": list(self.paths),
            "hyperparameters": dict(self.hyperparameters),
            "left_out": self.left_out,
            "rounding": self.rounding,
            "findings": [finding.text for finding in self.findings],
            "finding_kinds": [finding.kind for finding in self.findings],
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CheckpointSource:
        """Return the checkpoints that ``Trajectory.settings`` tells of; files of release 0.1 have no kinds."""
        texts: Sequence[str] = settings.get("findings") or ()
        kinds: Sequence[FindingKind] = settings.get("finding_kinds") or ()
        if len(kinds) != len(texts):
            kinds = ["other"] * len(texts)
        return cls(
            tuple(settings.get("checkpoints") or ()),
            dict(settings.get("hyperparameters") or {}),
            str(settings.get("left_out") or ""),
            settings.get("rounding", FLOAT32),
            tuple(Finding(kind, text) for kind, text in zip(kinds, texts, strict=True)),
        )


@dataclass(frozen=True)
class Provenance:
    """How a trajectory was made.

    Attributes:
        snapshot: ``"sketch"`` or ``"full"``; None if that is not known.
        track: Tracked quantity, such as ``"weights"`` or ``"average"``.
        sketch_dim: Length of the sketch of a block; 0 if there are no sketches.
        seed: Seed of the sketch.
        blocks: How blocks were made: a granularity, or the name of a function.
        fused: Layouts of fused tensors that were declared, by pattern.
        include: Patterns of the names that were recorded; None for all.
        exclude: Patterns of the names that were not recorded.
        max_snapshots: Number of snapshots beyond which they were thinned; None if that is not known.
        window: Optimizer steps of a window; 0 if there were none.
        root: Prefix that the names of all parameters share.
        source: The checkpoints from which the trajectory was made; None if it was recorded in training.
    """

    snapshot: str | None = None
    track: str = "weights"
    sketch_dim: int = 0
    seed: int = 0
    blocks: str = "tensor"
    fused: Mapping[str, str] = field(default_factory=dict)
    include: Any = None
    exclude: Any = None
    max_snapshots: int | None = None
    window: int = 0
    root: str = ""
    source: CheckpointSource | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Provenance:
        """Return the provenance that ``Trajectory.settings`` tells of.

        Raises:
            ValueError: Snapshots are sketches, and their length is not known.
        """
        if settings.get("snapshot") == "sketch" and not isinstance(settings.get("sketch_dim"), int):
            raise ValueError(f"its sketch_dim is {settings.get('sketch_dim')!r}")
        known = {it.name: settings[it.name] for it in fields(cls) if it.name != "source" and it.name in settings}
        has_source = any(name in settings for name in CheckpointSource().to_settings())
        return cls(**known, source=CheckpointSource.from_settings(settings) if has_source else None)

    @property
    def is_sketched(self) -> bool:
        """Whether snapshots are sketches, so that values have standard errors."""
        return self.snapshot == "sketch"

    @property
    def rounding(self) -> float:
        """Unit roundoff of the precision in which parameters are stored."""
        return FLOAT32 if self.source is None else self.source.rounding
