"""How long do all measures of 256 snapshots take, and their standard errors, in multiples of what is allowed?

The blocks are those of GPT-2, 148 of them; the limits are 50 ms and 1 s.
"""

from __future__ import annotations

import numpy as np
from _setting import Shapes, environment, gpt2, in_turns, ratio

from lightning_traj import Trajectory, measures
from lightning_traj.blocks import Block, block_groups


def walk(shapes: Shapes, n: int, dim: int = 32, seed: int = 0) -> Trajectory:
    """A drifting random walk of every block, as if it had been recorded: n snapshots, a step apart."""
    generator = np.random.default_rng(seed)
    blocks = tuple(
        Block(name, layer=name.rpartition(".")[0], role="other", numel=int(np.prod(shape)))
        for name, shape in shapes.items()
    )
    anchored, local, lengths = np.empty((len(blocks), n, n)), np.zeros((n, len(blocks), 4, 4)), []
    for b in range(len(blocks)):
        updates = 0.01 * (generator.standard_normal((n, dim)) + generator.standard_normal(dim))
        updates[0] = 0.0
        vectors = np.cumsum(updates, axis=0)
        theta_0 = generator.standard_normal(dim)
        newest = np.stack([theta_0 + vectors[-1], vectors[-1], updates[-1], updates[-2]])
        vectors[0] = theta_0
        anchored[b] = vectors @ vectors.T
        local[-1, b] = newest @ newest.T
        lengths.append((updates**2).sum(axis=1))
    squares = np.array(lengths)
    groups = block_groups(blocks).values()
    paths = np.stack([np.cumsum(np.sqrt(squares[members].sum(axis=0))) for members in groups], axis=1)
    settings = {"snapshot": "sketch", "sketch_dim": 2048, "seed": 0}
    return Trajectory(blocks, np.arange(n), np.arange(n) / 10, anchored, local, paths, settings=settings)


def check(trajectory: Trajectory) -> None:
    """The summary says what the measures say of the Gram matrix, and its errors are as small as they should be."""
    summary, errors = trajectory.summary(), trajectory.standard_errors()
    gram, relative = trajectory.gram(), trajectory.displacement_gram()
    expected = {
        "mds": measures.mean_directional_similarity(measures.trajectory_map(gram)),
        "mds_relative": measures.mean_directional_similarity(measures.relative_trajectory_map(relative)),
        "displacement": measures.displacement(relative)[-1],
        "path_length": measures.path_length(relative),
        "effective_rank": measures.effective_rank(measures.trajectory_map(gram)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(summary[name], value, rtol=1e-8, err_msg=name)
    # Oscillation is of windows of single steps, which are another matter.
    undefined = [name for name, value in summary.items() if np.isnan(value) and not name.startswith("oscillation")]
    if undefined or not all(0 < errors[name] < 0.1 * summary[name] for name in expected):
        raise AssertionError(f"undefined: {undefined}; standard errors: {errors}")


def measure(shapes: Shapes, n: int = 256, repeats: int = 9) -> dict[str, float]:
    trajectory = walk(shapes, n)
    check(trajectory)
    times = {
        "all measures": (in_turns({"": trajectory.summary}, repeats), 0.050),
        "their standard errors": (in_turns({"": trajectory.standard_errors}, repeats), 1.0),
    }
    of = f"of {n} snapshots of {len(trajectory.blocks)} blocks / limit"
    return {
        what: ratio(f"{what} {of}", {"taken": seconds[""], "limit": [limit]}, target=1.0)
        for what, (seconds, limit) in times.items()
    }


if __name__ == "__main__":
    print(environment())
    measure(gpt2())
