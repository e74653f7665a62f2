"""How much memory does recording sketched snapshots take beyond the stored rows, in multiples of the parameters?

It is the peak of the process (resident set, as Linux counts it) while snapshots are recorded and collected, less what
was there before, less what is stored.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from _setting import Shapes, environment, gpt2, parameters, resnet50

from lightning_traj.recording.recorder import Recorder

LIMIT = 48 * 2**20  # bytes, whatever the model's size; half of it is what the C library keeps of what was freed


def resident(peak: bool = False) -> int:
    """Resident bytes of this process, now or at their peak since ``forget_peak``."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def stored(recorder: Recorder) -> int:
    """Bytes that are kept: rows and Gram matrices, on the device and as last collected."""
    gram = recorder.state.gram
    kept = [
        gram.rows,
        gram.local,
        recorder.state.path_lengths.kept,
        [gram.base, gram.latest, gram.before, gram.anchored],
    ]
    on_device = sum(tensor.nbytes for tensors in kept for tensor in tensors)
    trajectory, _ = recorder.collect()
    return on_device + sum(array.nbytes for array in (trajectory.anchored, trajectory.local, trajectory.paths))


def measure(model: str, shapes: Shapes, snapshots: int = 4) -> int:
    """Bytes beyond the stored rows at the peak of recording."""
    theta = parameters(shapes)
    size = sum(tensor.nbytes for tensor in theta.values())
    gc.collect()
    before = resident()
    forget_peak()
    recorder = Recorder()
    recorder.prepare(theta)
    for step in range(snapshots):
        recorder.record(theta, step, float(step))
        for tensor in theta.values():
            tensor.mul_(0.999)
    recorder.collect()
    extra = resident(peak=True) - before - stored(recorder)
    print(
        f"memory beyond the stored rows / parameters, {model}: {extra / size:.3f}; {extra / 2**20:.0f} MiB beside "
        f"{size / 2**20:.0f} MiB of parameters (at most {LIMIT / 2**20:.0f} MiB is wanted)"
    )
    if len(recorder) != snapshots:
        raise AssertionError("it took little memory, and recorded nothing")
    return extra


def warm_up() -> None:
    """What is loaded or made once a process, whatever is recorded."""
    recorder = Recorder()
    for step in range(3):
        recorder.record({"weight": torch.full((400, 400), 1.0 + step)}, step, float(step))
    recorder.collect()


if __name__ == "__main__":
    print(environment())
    warm_up()
    measure("ResNet-50", resnet50())
    measure("GPT-2", gpt2())
