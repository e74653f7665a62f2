"""Linear maps from a block's entries to a short row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.sketch.countsketch import DEFAULT_DIM as DEFAULT_DIM
    from lightning_traj.sketch.countsketch import CountSketch as CountSketch
    from lightning_traj.sketch.protocol import Sketch as Sketch
    from lightning_traj.sketch.protocol import SketchInput as SketchInput
    from lightning_traj.sketch.registry import SKETCHES as SKETCHES

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "countsketch": ("CountSketch", "DEFAULT_DIM"),
        "protocol": ("Sketch", "SketchInput"),
        "registry": ("SKETCHES",),
    },
)
