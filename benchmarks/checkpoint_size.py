"""How much larger do checkpoints get by what TrajectoryCallback adds, in per cent of the checkpoint without it?

Counted in the files that torch.save writes, with weights and the optimizer's state of the right shapes. The snapshots
are made up, as is the window of eight steps that follows each: of their values, the size of a file knows nothing.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from _setting import Shapes, environment, gpt2, resnet50

from lightning_traj import FusedLayout, TrajectoryCallback
from lightning_traj.blocks.partition import Partition
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.recording.sketch_store import Sketcher
from recipes.resnet.networks import build

WINDOW = 8
QKV = {"q": 1, "k": 1, "v": 1}
FUSED = {"*.c_attn.weight": FusedLayout(QKV, axis=1), "*.c_attn.bias": FusedLayout(QKV)}  # as the callback knows them


class MadeUp(Sketcher):
    """Sketches that wander at random, and do not come from parameters."""

    position: torch.Tensor | None = None
    noise = torch.Generator().manual_seed(0)

    def _own(self, partition: Partition, read: Any, last: Any) -> torch.Tensor:
        numel = sum(self.sizes(partition.blocks))
        start = torch.zeros(numel, dtype=torch.float64) if self.position is None else self.position
        self.position = start + torch.randn(numel, generator=self.noise, dtype=torch.float64)
        return self.position


def resnet20() -> Shapes:
    """The parameters of the recipe's ResNet-20 for ten classes, 272 thousand."""
    return {name: tuple(p.shape) for name, p in build("resnet", 20, 16, classes=10).named_parameters()}


def recorded(shapes: Shapes, snapshots: int, **settings: Any) -> Recorder:
    """A recorder with so many snapshots, each followed by a window, and the last window half way through."""
    recorder = Recorder(RecordingSettings(window=WINDOW, fused=FUSED, **settings))
    recorder.sketcher.__class__ = MadeUp
    parameters = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    step = 0
    for epoch in range(snapshots):
        recorder.record(parameters, step, float(epoch))
        recorder.windows.begin(parameters, step)
        for _ in range(WINDOW if epoch < snapshots - 1 else WINDOW // 2):
            step += 1
            recorder.windows.add(parameters, step)
    return recorder


def added(recorder: Recorder) -> dict[str, Any]:
    """What the callback adds to a checkpoint."""
    callback = TrajectoryCallback()
    callback._recorder = callback._tracker.recorder = recorder
    return {callback.state_key: callback.state_dict()}


class Sink(io.RawIOBase):
    """A file that counts what is written to it, and keeps nothing."""

    count = 0

    def write(self, data: Any) -> int:
        self.count += len(data)
        return len(data)


def file_of(content: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def check(recorder: Recorder, file: io.BytesIO, limit: float = 1e-14) -> None:
    """A recorder that goes on from the file has the same trajectory."""
    (state,) = torch.load(file, weights_only=True).values()
    resumed = Recorder(RecordingSettings(window=WINDOW, fused=FUSED))
    resumed.load_state_dict(state)
    ours, theirs = resumed.collect()[0], recorder.collect()[0]
    scale = np.abs(theirs.anchored).max(axis=(1, 2), keepdims=True)
    same = [
        (np.abs(ours.anchored - theirs.anchored) <= limit * scale).all(),
        *(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("steps", "local", "paths")),
        np.allclose(ours.windows.sums, theirs.windows.sums, rtol=1e-7, atol=0),  # saved in float32
        ours.blocks == theirs.blocks,
    ]
    if not all(same):
        raise AssertionError("the trajectory that was loaded is not the one that was saved")


class Run(NamedTuple):
    """A run whose checkpoints are looked at.

    Attributes:
        shapes: Shapes of the parameters.
        copies: Tensors in the checkpoint for each parameter: itself, and momentum or moments.
        snapshots: Snapshots that have been taken.
        wanted: Per cent that may be added; None where it is only reported.
    """

    shapes: Shapes
    copies: int
    snapshots: int
    wanted: float | None = None


RUNS = {
    "ResNet-50, SGD with momentum": Run(resnet50(), 2, 91, 15.0),
    "GPT-2, AdamW": Run(gpt2(), 3, 100, 4.0),
    "ResNet-20, SGD with momentum": Run(resnet20(), 2, 21),
    "ResNet-20 for longer": Run(resnet20(), 2, 100),
}


def without(run: Run) -> int:
    """Bytes of the checkpoint without what the callback adds."""
    weights = {f"{copy}.{name}": torch.zeros(shape) for copy in range(run.copies) for name, shape in run.shapes.items()}
    torch.save(weights, sink := Sink())
    return sink.count


def measure(name: str, run: Run, **settings: Any) -> float:
    """Per cent that the callback adds to the checkpoint."""
    recorder = recorded(run.shapes, run.snapshots, **settings)
    state = added(recorder)
    file = file_of(state)
    check(recorder, file)
    size, whole = file.getbuffer().nbytes, without(run)
    share = 100 * size / whole
    found = next(iter(state.values()))
    gram, windows = found["gram"], found["windows"]
    parts = {
        "sketches": [*gram["rows"], gram["base"], gram["latest"], gram["before"]],
        "local Gram matrices": [gram["local"]["values"]],
        "windows": [windows["sums"]["values"], *windows["rows"], windows["parts"]],
        "path lengths": [found["paths"]],
    }
    listed = ", ".join(f"{part} {sum(t.nbytes for t in tensors) / 1e6:.2f}" for part, tensors in parts.items())
    wanted = "" if run.wanted is None else f" (at most {run.wanted:g} % is wanted)"
    dim = recorder.sketcher.sketch.dim
    print(
        f"{name}, {run.snapshots} snapshots of {len(recorder.state.blocks)} blocks, sketch_dim={dim}: "
        f"{size / 1e6:.2f} MB beside {whole / 1e6:,.1f} MB, {share:.1f} %{wanted}; in MB: {listed}"
    )
    return share


if __name__ == "__main__":
    print(environment())
    for name, run in RUNS.items():
        measure(name, run)
