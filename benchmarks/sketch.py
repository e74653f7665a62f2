"""How long does sketching all parameters take, in multiples of cloning them?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from _setting import Shapes, environment, gpt2, in_turns, parameters, ratio, resnet50

from lightning_traj import CountSketch

SKETCH_DIM = 2048  # TrajectoryCallback's default


def check(values: Mapping[str, torch.Tensor], dim: int = SKETCH_DIM, sigmas: float = 6.0) -> None:
    """Inner products of the sketches are those of the parameters, within their standard error."""
    sketch = CountSketch(dim)
    for name, theta in values.items():
        other = theta.roll(1)
        a, b = (x.flatten().double() for x in (theta, other))
        estimate = float(sketch(theta, name) @ sketch(other, name))
        error = float(((a @ a) * (b @ b) + (a @ b) ** 2) / dim) ** 0.5 if theta.numel() > dim else 1e-9 * float(a @ a)
        if abs(estimate - float(a @ b)) > sigmas * error:
            raise AssertionError(f"{name}: ⟨Sa, Sb⟩ = {estimate}, ⟨a, b⟩ = {float(a @ b)} ± {error}")


def measure(model: str, shapes: Shapes, repeats: int = 15) -> float:
    values = parameters(shapes)
    check(values)
    sketch = CountSketch(SKETCH_DIM)  # used again and again, as a run does
    sides = {
        "sketch": lambda: [sketch(theta, name) for name, theta in values.items()],
        "clone": lambda: [theta.clone() for theta in values.values()],
    }
    numel = sum(theta.numel() for theta in values.values())
    what = f"sketching / cloning, {model}, {numel / 1e6:.1f} million parameters in {len(values)} tensors"
    return ratio(what, in_turns(sides, repeats), target=1.0)


if __name__ == "__main__":
    print(environment())
    measure("ResNet-50", resnet50())
    measure("GPT-2", gpt2())
