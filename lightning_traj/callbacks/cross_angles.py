"""Angles between two quantities of one run at the same step, from their sketches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_traj import measures
from lightning_traj.gram import Row, SketchedGram
from lightning_traj.recording import Recorder

# By pair of quantities: the tag, and the two vectors of a block, made of the newest sketches of both quantities and the
# first sketch of the second.
CROSSINGS: dict[tuple[str, str], tuple[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    ("gradient", "update"): ("gradient_update_angle", lambda gradient, update, _: (-gradient, update)),
    ("average", "weights"): ("weights_average_angle", lambda average, weights, _: (average, weights)),
    ("update", "weights"): ("direction_update_angle", lambda update, weights, base: (update, weights - base)),
}


def crossing(first: Recorder, second: Recorder) -> dict[str, float]:
    """Return the angle between two recorded quantities over the blocks that both have, in degrees, by tag.

    ``gradient_update_angle`` is ∠(−g, u), 0 for plain gradient descent; ``weights_average_angle`` ∠(θ, average);
    ``direction_update_angle`` ∠(θ_t − θ_0, u), 0 where the update goes on straight away from θ_0.

    Empty for two quantities between which no angle is defined, and where they were recorded in full, at different steps
    or with different sketches.
    """
    for one, other in ((first, second), (second, first)):
        quantities = one.settings.track, other.settings.track
        if quantities in CROSSINGS and _made_as(one) == _made_as(other) is not None:
            tag, vectors = CROSSINGS[quantities]
            return {tag: _angle(one, other, vectors)}
    return {}


def _angle(one: Recorder, other: Recorder, vectors: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
    """Return the angle between two vectors of the newest sketches, over the blocks that both recorders have."""
    gram, other_gram = one.state.gram, other.state.gram
    assert isinstance(gram, SketchedGram)
    assert isinstance(other_gram, SketchedGram)
    latest, base = (Row(flat, other_gram.lengths).blocks() for flat in (other_gram.latest, other_gram.base))
    others = dict(zip(other.state.blocks, zip(latest, base, strict=True), strict=False))
    lost = {state.blocks[b].name for state in (one.state, other.state) for b in state.partition.lost}
    total = torch.zeros(3, dtype=torch.float64, device=one.process.device)
    for block, sketch in zip(one.state.blocks, Row(gram.latest, gram.lengths).blocks(), strict=False):
        if block in others and block.name not in lost:
            a, b = vectors(sketch, *others[block])
            total = total + torch.stack([a @ a, a @ b, b @ b])
    aa, ab, bb = total.tolist()
    return float(measures.turn([[aa, ab], [ab, bb]])[1])


def _made_as(recorder: Recorder) -> tuple[object, ...] | None:
    """Return how and at which step the newest sketches were made; None without sketches."""
    latest = recorder.state.history.latest
    if latest is None or recorder.settings.is_full:
        return None
    return recorder.sketcher.sketch.dim, recorder.settings.seed, recorder.plain_settings["blocks"], latest[0]
