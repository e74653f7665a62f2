"""How much longer does a snapshot take if the same parameters lie in ten times as many blocks?

Splitting and grouping happen once; what a block costs at each snapshot is its own last stage of the sketch, and a few
launches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from _setting import Shapes, environment, in_turns, parameters, ratio

from lightning_traj import FusedLayout
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings

Parameters = Mapping[str, torch.Tensor]


def network(blocks: int, numel: int) -> Shapes:
    """A network of so many blocks, three of four in fused projections of attention."""
    layers = blocks // 4
    rows = numel // blocks // 256
    shapes: Shapes = {}
    for layer in range(layers):
        shapes[f"h.{layer}.attn.qkv.weight"] = (3 * rows, 256)
        shapes[f"h.{layer}.attn.proj.weight"] = (rows, 256)
    return shapes


def trained(shapes: Shapes) -> Parameters:
    """Random parameters of these shapes."""
    return {name: torch.nn.Parameter(theta) for name, theta in parameters(shapes).items()}


def recording(values: Parameters) -> tuple[Recorder, Callable[[], object]]:
    recorder = Recorder(RecordingSettings(fused={"*.qkv.weight": FusedLayout({"q": 1, "k": 1, "v": 1})}))
    recorder.check(values)
    recorder.prepare(values)
    recorder.record(values, 0, 0.0)

    def record() -> None:
        recorder.record(values, recorder.state.history.steps[-1] + 1, 0.0)

    return recorder, record


def check(values: Parameters, sigmas: float = 6.0) -> None:
    """The norm of everything is that of the parameters, within its standard error."""
    recorder, record = recording(values)
    record()
    trajectory = recorder.collect()[0]
    norm = sum(float(theta.detach().double().square().sum()) for theta in values.values()) ** 0.5
    error = trajectory.standard_errors("*")["param_norm"]
    value = trajectory.summary("*")["param_norm"]
    if abs(value - norm) > sigmas * error:
        raise AssertionError(f"‖θ‖ = {value} ± {error}, and is {norm}")


def measure(numel: int = 100_000_000, few: int = 52, many: int = 500, repeats: int = 25) -> float:
    sides = {}
    for blocks in (many, few):
        values = trained(network(blocks, numel))
        check(values)
        recorder, sides[f"{len(recorder.state.blocks)} blocks"] = recording(values)
    what = f"a snapshot of {numel / 1e6:.3g} million parameters, " + " / ".join(sides)
    return ratio(what, in_turns(sides, repeats), target=1.4)


if __name__ == "__main__":
    print(environment())
    measure()
