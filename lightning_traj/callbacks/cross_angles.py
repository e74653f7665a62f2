"""Angles between two quantities of one run at the same step, from their sketches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_traj import measures
from lightning_traj.gram import Row
from lightning_traj.recording import Recorder

# By pair of quantities: the tag, and the two vectors of a block, made of the newest sketches of both quantities and the
# first sketch of the second.
CROSSINGS: dict[tuple[str, str], tuple[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    ("gradient", "update"): ("gradient_update_angle", lambda gradient, update, _: (-gradient, update)),
    ("average", "weights"): ("weights_average_angle", lambda average, weights, _: (average, weights)),
    ("update", "weights"): ("direction_update_angle", lambda update, weights, base: (update, weights - base)),
}


def crossing(first: tuple[str, Recorder], second: tuple[str, Recorder]) -> dict[str, float]:
    """Return the angle between two quantities over the blocks that both have, in degrees, by tag.

    ``gradient_update_angle`` is ∠(−g, u), 0 for plain gradient descent; ``weights_average_angle`` ∠(θ, average);
    ``direction_update_angle`` ∠(θ_t − θ_0, u), 0 where the update goes on straight away from θ_0.

    Empty for two quantities between which no angle is defined, and where they were recorded in full, at different steps
    or with different sketches.
    """
    for (one, its), (other, others) in ((first, second), (second, first)):
        if (one, other) in CROSSINGS and _comparable(its, others):
            tag, vectors = CROSSINGS[one, other]
            latest, base = (Row(flat, others.gram.lengths).blocks() for flat in (others.gram.latest, others.gram.base))
            places = dict(zip(others.blocks, zip(latest, base, strict=True), strict=False))
            lost = {recorder.blocks[b].name for recorder in (its, others) for b in recorder.partition.lost}
            total = torch.zeros(3, dtype=torch.float64, device=its.device)
            for block, sketch in zip(its.blocks, Row(its.gram.latest, its.gram.lengths).blocks(), strict=False):
                if block in places and block.name not in lost:
                    a, b = vectors(sketch, *places[block])
                    total = total + torch.stack([a @ a, a @ b, b @ b])
            aa, ab, bb = total.tolist()
            return {tag: float(measures.turn([[aa, ab], [ab, bb]])[1])}
    return {}


def _comparable(one: Recorder, other: Recorder) -> bool:
    sketches = [(r.snapshot, r.sketch.dim, r.sketch.seed, r.settings["blocks"]) for r in (one, other)]
    at = [r.latest_key[0] if r.latest_key else None for r in (one, other)]
    return sketches[0] == sketches[1] and sketches[0][0] == "sketch" and at[0] is not None and at[0] == at[1]
