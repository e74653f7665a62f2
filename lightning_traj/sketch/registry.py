"""Every sketch, by name. A new one takes a file and a line here; `tests/sketch/test_contract.py` then checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_traj.sketch.countsketch import CountSketch
from lightning_traj.sketch.protocol import Sketch

SKETCHES: Mapping[str, Callable[[int, int], Sketch]] = {  # functions from dim and seed to a sketch
    "countsketch": CountSketch,
}
