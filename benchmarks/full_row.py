"""How long does a Gram row of full snapshots take, in multiples of a float32 matrix-vector product of the same data?

A row is what ``RunningGram(exact=True).update`` does with the newest of T + 1 snapshots: inner products with all
others, in float64, of displacements that are a thousandth of the parameters.
"""

from __future__ import annotations

import torch
from _setting import environment, in_turns, ratio

from lightning_traj import RunningGram


def walk(numel: int, stored: int) -> torch.Tensor:
    """θ_0 and so many later snapshots, each 1e-3 of θ away from it: float32 [stored + 1, numel]."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(stored + 1, numel)
    rows[0] = torch.randn(numel, generator=generator)
    for row in rows[1:]:
        torch.add(rows[0], torch.randn(numel, generator=generator), alpha=1e-3, out=row)
    return rows


def split(row: torch.Tensor, blocks: int) -> list[torch.Tensor]:
    return list(row.split(-(-len(row) // blocks)))


def check(rows: torch.Tensor, blocks: int, limit: float = 1e-10) -> None:
    """Row by row the same as the Gram matrix of float64 displacements, to 1e-10 of the norms."""
    gram = RunningGram(exact=True)
    for row in rows:
        gram.update(split(row, blocks))
    anchored = gram.compute_anchored().sum(0)
    reference = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(65_536, dim=1):
        vectors = part.double()
        vectors[1:] -= vectors[0].clone()
        reference += vectors @ vectors.T
    norms = reference.diagonal().sqrt()
    worst = float(((anchored - reference).abs() / torch.outer(norms, norms)).max())
    print(f"relative error of the Gram matrix about θ_0, {len(rows)} snapshots: {worst:.1e} (below {limit:g})")
    if not worst < limit:
        raise AssertionError("the row is fast, and wrong")


def measure(numel: int = 11_000_000, stored: int = 50, blocks: int = 10, repeats: int = 7) -> float:
    rows = walk(numel, stored)
    check(rows[:8], blocks)
    gram = RunningGram(exact=True)
    for row in rows:
        gram.update(split(row, blocks))
    new = rows[-1] + 1e-4

    def update() -> None:
        gram.update(split(new, blocks))
        gram.keep(range(stored + 1))

    seconds = in_turns({"row": update, "product": lambda: rows[1:] @ new}, repeats)
    what = f"Gram row / matrix-vector product, {stored} snapshots of {numel / 1e6:.1f} million parameters"
    return ratio(what, seconds, target=2.0)


if __name__ == "__main__":
    print(environment())
    measure()
