"""What do a window of single steps and a snapshot each step cost, in long runs?

A window of 8 steps in multiples of one sketch of all parameters; a snapshot late in a run in multiples of one soon
after the first thinning; and the memory that the run takes beside what is said of it before it begins.
"""

from __future__ import annotations

import gc
import re
import time
from statistics import median

import torch
from _setting import Shapes, environment, gpt2, in_turns, parameters, ratio
from memory import forget_peak, resident, stored

from lightning_traj.measures.windows import oscillation_of_window as oscillation
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch.protocol import SketchInput
from lightning_traj.tensors import stretches_of

WINDOW = 8
WANTED = 17.0  # sketches a window, at most: before and after each step, and its bookkeeping
GROWTH = 1.1  # a snapshot late in a run, in multiples of an early one
SPAN = 1000  # snapshots that are timed early, and late
TENSORS: Shapes = {f"h.{i}.weight": (64, 64) for i in range(20)}
TINY: Shapes = {"weight": (20, 10), "bias": (3,)}


def trained(shapes: Shapes) -> dict[str, torch.nn.Parameter]:
    """Random parameters of these shapes."""
    return {name: torch.nn.Parameter(theta) for name, theta in parameters(shapes).items()}


def check(shapes: Shapes, steps: int = WINDOW, limit: float = 1e-9) -> None:
    """A window says of its steps what the parameters themselves say, where sketches keep them whole."""
    values = trained(shapes)
    recorder = Recorder(RecordingSettings(sketch_dim=max(theta.numel() for theta in values.values()), window=steps))
    thetas = []
    for step in range(steps + 1):
        if step:
            for i, theta in enumerate(values.values()):
                theta.data += 0.01 * (-1) ** step * torch.randn(theta.shape, generator=torch.Generator().manual_seed(i))
                theta.data *= 0.999
            recorder.windows.add(values, step)
            recorder.windows.prepare(values)
        else:
            recorder.record(values, 0, 0.0)
            recorder.windows.begin(values, 0)
        thetas.append(torch.cat([theta.detach().double().flatten() for theta in values.values()]))
    recorder.record(values, steps, 1.0)
    updates = torch.stack(thetas).diff(dim=0)
    cosines = torch.nn.functional.cosine_similarity(updates[1:], updates[:-1])
    expected = [
        cosines.mean(),
        (cosines < 0).double().mean(),
        updates.sum(0).norm() / updates.norm(dim=1).sum(),
        updates.norm(dim=1).mean(),
    ]
    windows = recorder.collect()[0].windows
    for ours, theirs in zip(oscillation(windows.of(range(len(shapes)), 0)), expected, strict=True):
        if not abs(ours - float(theirs)) <= limit * abs(float(theirs)):
            raise AssertionError(f"a window says {ours}, and it is {float(theirs)}")


def window(model: str, shapes: Shapes, repeats: int = 3) -> float:
    """A window, its beginning included, in multiples of one sketch of all parameters."""
    values = trained(shapes)
    recorder = Recorder(RecordingSettings(window=WINDOW))
    recorder.prepare(values)
    recorder.record(values, 0, 0.0)
    step = 0

    def one_window() -> None:
        nonlocal step
        step += 1
        recorder.windows.begin(values, step)
        for i in range(WINDOW):
            step += 1
            if i:
                recorder.windows.prepare(values)
            recorder.windows.add(values, step)

    def one_sketch() -> torch.Tensor:
        blocks = zip(recorder.state.blocks, recorder.state.partition.held(values, {}), strict=True)
        given = [SketchInput(b.name, b.numel, held[0].tensor.device, stretches_of(held)) for b, held in blocks]
        return recorder.sketcher.sketch.of_blocks(given)

    seconds = in_turns({f"a window of {WINDOW} steps": one_window, "one sketch of all parameters": one_sketch}, repeats)
    value = ratio(f"{model}, a window of {WINDOW} steps / one sketch of all parameters", seconds, WANTED)
    if len(recorder.windows.state.sums) != repeats + 1:
        raise AssertionError(f"{len(recorder.windows.state.sums)} windows were recorded, of {repeats + 1}")
    return value


def stated(said: str) -> float:
    """Bytes in memory, of what ``Recorder.prepare`` says in words."""
    found = re.search(r"([\d.e+]+) (B|kB|MB|GB) in memory", said)
    if found is None:
        raise AssertionError(f"no memory is stated: {said}")
    return float(found[1]) * 1000.0 ** ("B", "kB", "MB", "GB").index(found[2])


class Run:
    """A run with a snapshot each step and a window each 100, that logs as often as the callback does."""

    def __init__(self, shapes: Shapes, max_snapshots: int) -> None:
        self.values = trained(shapes)
        self.recorder = Recorder(RecordingSettings(max_snapshots=max_snapshots))
        self.stated = stated(self.recorder.prepare(self.values))
        self.step = self.logged = 0

    def advance(self) -> float:
        """Seconds that one snapshot takes, the step's part of a window included; of the logs between, none."""
        recorder, values = self.recorder, self.values
        for theta in values.values():
            theta.data.mul_(1 + 1e-4 * (-1) ** (self.step // 100))
        start = time.perf_counter()
        recorder.record(values, self.step, self.step / 100)
        recorder.windows.add(values, self.step)
        if self.step % 100 == 0:
            recorder.windows.begin(values, self.step)
        seconds = time.perf_counter() - start
        if 16 * (recorder.state.history.scheduled - self.logged) >= recorder.state.history.scheduled:
            recorder.collect()
            self.logged = recorder.state.history.scheduled
        self.step += 1
        return seconds


def growth(shapes: Shapes, snapshots: int, max_snapshots: int = 256, span: int = SPAN) -> tuple[float, float]:
    """A late snapshot in multiples of an early one, in turns; and what is stored, in multiples of what is stated."""
    gc.collect()
    before = resident()
    forget_peak()
    late = Run(shapes, max_snapshots)
    for _ in range(snapshots - span):
        late.advance()
    extra = resident(peak=True) - before
    kept = stored(late.recorder)
    early = Run(shapes, max_snapshots)
    while early.recorder.state.history.stride == 1:
        early.advance()
    sides: dict[str, list[float]] = {"late": [], "early": []}
    for _ in range(span):  # in turns, so that both meet the same machine
        sides["late"].append(late.advance())
        sides["early"].append(early.advance())
    trajectory, dropped = late.recorder.collect()
    if dropped or not max_snapshots / 2 <= len(trajectory) <= max_snapshots or trajectory.steps[-1] != snapshots - 1:
        raise AssertionError(f"{trajectory} is not what is to be kept of {snapshots} snapshots")
    value = median(sides["late"]) / median(sides["early"])
    numel = sum(theta.numel() for theta in late.values.values())
    print(
        f"{snapshots:,} snapshots of {len(shapes)} tensors of {numel:,} entries, at most {max_snapshots} kept, "
        f"one of the last {span:,} / of the first {span:,} after thinning: {value:.2f} (at most {GROWTH:g} is wanted); "
        f"{1e3 * median(sides['late']):.2f} ms, {1e3 * median(sides['early']):.2f} ms"
    )
    print(
        f"  in MB: {late.stated / 1e6:.1f} stated at most in memory, {kept / 1e6:.1f} stored, {extra / 1e6:.1f} at the "
        f"peak of the process: {extra / late.stated:.2f} of what is stated"
    )
    return value, kept / late.stated


if __name__ == "__main__":
    print(environment())
    check({"weight": (60, 50), "bias": (50,)})
    window("GPT-2", gpt2())
    torch.set_num_threads(1)  # of small operations: handing them out takes longer than doing them
    growth(TENSORS, 10_000)
    growth(TINY, 100_000)
