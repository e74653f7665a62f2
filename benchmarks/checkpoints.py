"""How fast and in how much memory are checkpoints on disk analysed exactly?

Three questions: what does reading from files cost beside the same computation on tensors that lie in memory; how much
memory do 100 checkpoints of GPT-2 take; and how does that compare with the script that one would write. Files are
written to a temporary folder (5 GB by default); they are in the page cache when they are read.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from _setting import Shapes, environment, gpt2, in_turns, parameters, ratio
from memory import forget_peak, resident
from safetensors.torch import load_file, save_file

from lightning_traj import from_checkpoints
from lightning_traj.blocks.partition import Partition
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.streaming import Reader, anchored_gram, update_gram

GIB = 2**30


class InMemory:
    """Tensors that need not be read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def shapes(self) -> Mapping[str, torch.Tensor]:
        return self.tensors

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def release(self) -> None:
        pass


def write(folder: Path, shapes: Shapes, count: int, files: int | None = None) -> list[Path]:
    """So many checkpoints of a run that drifts; past ``files`` of them, links to earlier ones."""
    files = files or count
    theta = parameters(shapes)
    drift = parameters(shapes, seed=1)
    paths = [folder / f"step={step}.safetensors" for step in range(count)]
    for i, path in enumerate(paths):
        if i < files:
            save_file(theta, path)
            for name, tensor in theta.items():
                tensor.add_(drift[name], alpha=0.01 / (1 + i))
        else:
            path.hardlink_to(paths[i % files])
    return paths


def naive(paths: Sequence[Path]) -> np.ndarray:
    """The script that one would write: load all, stack, normalise, multiply."""
    rows = [torch.cat([tensor.flatten() for tensor in load_file(path).values()]) for path in paths]
    theta = torch.stack(rows).double()  # in float32 the cosines of millions of entries are off by 1e-4 to 1e-3
    theta = theta / theta.norm(dim=1, keepdim=True)
    cosines: np.ndarray = (theta @ theta.T).numpy()
    return cosines


def speed(shapes: Shapes, count: int = 10, repeats: int = 3) -> float:
    """Time from files as a multiple of the time in memory, which is to be below 1 / 0.7."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), shapes, count)
        in_memory = [Checkpoint(path, InMemory(load_file(path))) for path in paths]
        partition = Partition().extended(in_memory[0].shapes)

        def compute() -> dict[str, np.ndarray]:
            reader = Reader(in_memory)
            grams = [anchored_gram(update_gram(pieces, reader).gram) for pieces in partition.pieces]
            return dict(zip((block.name for block in partition.blocks), grams, strict=True))

        from_files = from_checkpoints(folder)
        expected = compute()
        for block, gram in zip(from_files.blocks, from_files.anchored, strict=True):
            if not np.allclose(gram, expected[block.name], rtol=1e-12, atol=0):
                raise AssertionError(f"the files hold something else than memory in {block.name}")
        sides = {
            "from files": lambda: from_checkpoints(folder),
            "in memory": compute,
            "cat": lambda: subprocess.run(["cat", *map(str, paths)], stdout=subprocess.DEVNULL, check=True),
        }
        seconds = in_turns(sides, repeats)
        size = sum(path.stat().st_size for path in paths)
        rates = "; ".join(f"{name} {size / min(times) / 1e9:.2f} GB/s" for name, times in seconds.items())
        print(f"{count} checkpoints of {size / count / 1e6:.3g} MB: {rates}")
        del seconds["cat"]
        return ratio("exact analysis from files / in memory", seconds, target=1 / 0.7)


def memory(shapes: Shapes, count: int = 100, files: int = 10) -> float:
    """GiB at the peak of the process."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), shapes, count, files)
        forget_peak()
        trajectory = from_checkpoints(folder)
        peak = resident(peak=True) / GIB
        if len(trajectory) != count:
            raise AssertionError(f"{len(trajectory)} of {count} checkpoints were counted")
    numel = sum(block.numel for block in trajectory.blocks)
    print(f"{count} checkpoints of {numel / 1e6:.4g} million parameters: {peak:.2f} GiB at the peak (below 2 wanted)")
    return peak


def script(shapes: Shapes, count: int = 100, copies: int = 2) -> float:
    """Memory of the naive script as a multiple of ours, both beyond what the process had before."""
    shapes = {f"{i}.{name}": shape for i in range(copies) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), shapes, count)
        beyond = []
        maps = []
        for side in (lambda: from_checkpoints(folder).map("*"), lambda: naive(paths)):
            before = resident()
            forget_peak()
            maps.append(side())
            beyond.append(resident(peak=True) - before)
    difference = float(np.abs(maps[0] - maps[1]).max())
    if difference > 1e-6:
        raise AssertionError(f"cosines differ by {difference:.1e}")
    value = beyond[1] / max(beyond[0], 1)  # a tiny one needs nothing that was not there
    print(
        f"load all, stack, normalise, multiply / ours, in memory: {value:.0f} (at least 20 is wanted); "
        f"{beyond[1] / GIB:.2f} GiB, ours {beyond[0] / GIB:.2f} GiB; cosines agree to {difference:.0e}"
    )
    return value


if __name__ == "__main__":
    print(environment())
    speed(gpt2())
    memory(gpt2())
    script({"a": (1000, 1000), "b": (1000, 2000), "c": (10,)})
