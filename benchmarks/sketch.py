"""How long does sketching all parameters take, in multiples of cloning them?

Clones are timed in two ways, since a C library may or may not keep the memory that the last ones left. Clones that are
kept, as snapshots are, always need new pages; clones that are dropped find the old ones, at best.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from _setting import Shapes, environment, gpt2, in_turns, parameters, ratio, resnet50

from lightning_traj import CountSketch
from lightning_traj.sketch.countsketch import DEFAULT_DIM


def check(values: Mapping[str, torch.Tensor], dim: int = DEFAULT_DIM, sigmas: float = 6.0) -> None:
    """Inner products of the sketches are those of the parameters, within their standard error."""
    sketch = CountSketch(dim)
    for name, theta in values.items():
        other = theta.roll(1)
        a, b = (x.flatten().double() for x in (theta, other))
        estimate = float(sketch(theta, name) @ sketch(other, name))
        error = float(((a @ a) * (b @ b) + (a @ b) ** 2) / dim) ** 0.5 if theta.numel() > dim else 1e-9 * float(a @ a)
        if abs(estimate - float(a @ b)) > sigmas * error:
            raise AssertionError(f"{name}: ⟨Sa, Sb⟩ = {estimate}, ⟨a, b⟩ = {float(a @ b)} ± {error}")


def measure(model: str, shapes: Shapes, repeats: int = 12) -> list[float]:
    values = parameters(shapes)
    check(values)
    sketch = CountSketch(DEFAULT_DIM)  # used again and again, as a run does
    numel = sum(theta.numel() for theta in values.values())
    kept: list[list[torch.Tensor]] = []

    def clone_and_keep() -> None:
        kept.append([theta.clone() for theta in values.values()])

    ratios = []
    for clones, clone, times in (
        ("clones that are kept", clone_and_keep, min(repeats, int(2**30 / numel))),  # 4 GiB of them at most
        ("clones that are dropped", lambda: [theta.clone() for theta in values.values()], repeats),
    ):
        sides = {"sketches": lambda: [sketch(theta, name) for name, theta in values.items()], clones: clone}
        what = f"sketching / cloning, {model}, {numel / 1e6:.1f} million parameters in {len(values)} tensors"
        ratios.append(ratio(what, in_turns(sides, times), target=1.0))
        kept.clear()
    return ratios


if __name__ == "__main__":
    print(environment())
    measure("ResNet-50", resnet50())
    measure("GPT-2", gpt2())
