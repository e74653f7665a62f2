"""Angles between two quantities of one run at the same step, from their sketches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_traj import measures
from lightning_traj.gram import Row, SketchedGram
from lightning_traj.recording import Recorder

# Tag, the two quantities, and the two vectors of a block from their newest sketches and the first one of the second.
CROSSINGS: dict[tuple[str, str], tuple[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    ("gradient", "update"): ("gradient_update_angle", lambda gradient, update, _: (-gradient, update)),
    ("average", "weights"): ("weights_average_angle", lambda average, weights, _: (average, weights)),
    ("update", "weights"): ("direction_update_angle", lambda update, weights, base: (update, weights - base)),
}


def crossing(first: tuple[str, Recorder], second: tuple[str, Recorder]) -> dict[str, float]:
    """The angle between two quantities over the blocks that both have, in degrees, by tag.

    ``gradient_update_angle`` is ∠(−g, u), 0 for plain gradient descent; ``weights_average_angle`` ∠(θ, average);
    ``direction_update_angle`` ∠(θ_t − θ_0, u), 0 where the update goes on straight away from θ_0.

    Empty for two quantities without an angle that means something, and where they were not recorded at the same step,
    in full, or with different sketches.
    """
    for (one, its), (other, others) in ((first, second), (second, first)):
        if (one, other) in CROSSINGS and _comparable(its, others):
            tag, vectors = CROSSINGS[one, other]
            state, other_state = its.state, others.state
            gram, other_gram = state.gram, other_state.gram
            assert isinstance(gram, SketchedGram)
            assert isinstance(other_gram, SketchedGram)
            latest, base = (Row(flat, other_gram.lengths).blocks() for flat in (other_gram.latest, other_gram.base))
            places = dict(zip(other_state.blocks, zip(latest, base, strict=True), strict=False))
            lost = {each.blocks[b].name for each in (state, other_state) for b in each.partition.lost}
            total = torch.zeros(3, dtype=torch.float64, device=its.process.device)
            for block, sketch in zip(state.blocks, Row(gram.latest, gram.lengths).blocks(), strict=False):
                if block in places and block.name not in lost:
                    a, b = vectors(sketch, *places[block])
                    total = total + torch.stack([a @ a, a @ b, b @ b])
            aa, ab, bb = total.tolist()
            return {tag: float(measures.turn([[aa, ab], [ab, bb]])[1])}
    return {}


def _comparable(one: Recorder, other: Recorder) -> bool:
    sketches = [(r.options.snapshot, r.sketcher.sketch.dim, r.options.seed, r.settings["blocks"]) for r in (one, other)]
    at = [r.state.history.latest[0] if r.state.history.latest else None for r in (one, other)]
    return sketches[0] == sketches[1] and sketches[0][0] == "sketch" and at[0] is not None and at[0] == at[1]
