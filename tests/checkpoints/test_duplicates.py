"""Duplicates are found in memory that depends on neither the size nor the number of the checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_traj import from_checkpoints
from lightning_traj.checkpoints import streaming
from lightning_traj.checkpoints.duplicates import same_weights, tied
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.formats.opening import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 2**20
COUNT = 16
SAVE: dict[str, Callable[[dict[str, torch.Tensor], Path], Any]] = {"safetensors": save_file, "pt": torch.save}


@pytest.fixture(params=["safetensors", "pt"])
def repeated(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Files of 16 MiB each, all of one content but the last, in which one entry differs; two parameters are tied."""
    weights = {"a.weight": torch.randn(1024, 1024), "b.weight": torch.zeros(1024, 2048)}
    weights["c.weight"] = weights["a.weight"].clone()
    paths = [tmp_path / f"step{step}.{request.param}" for step in range(COUNT)]
    SAVE[request.param](weights, paths[0])
    for path in paths[1:-1]:
        path.hardlink_to(paths[0])
    weights["b.weight"][-1, -1] = 1.0
    SAVE[request.param](weights, paths[-1])
    return paths


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak(do: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and by how many bytes the process grows meanwhile: pages of mapped files count."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS:")
    result = do()
    return result, resident("VmHWM:") - before


linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read where Linux keeps it"
)


@linux
@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_memory_is_bounded_where_checkpoints_are_duplicates(
    repeated: list[Path], snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files together are 256 MiB; systems that map 2 MiB for each byte that is read take 64 MiB."""
    monkeypatch.setattr(streaming, "MAPPED", 8 * MIB)
    trajectory, grown = peak(lambda: from_checkpoints(repeated, snapshot=snapshot))
    assert trajectory.settings["findings"] == [
        "c.weight and a.weight are one parameter, saved twice: counted once.",
        f"{', '.join(path.name for path in repeated[:3])} and 12 more hold exactly the same weights.",
    ]
    assert grown < COUNT * 16 * MIB / 2


@linux
def test_the_pages_of_files_are_counted(repeated: list[Path]) -> None:
    """The measurement can fail."""
    checkpoints = [open_checkpoint(path) for path in repeated]

    def touch_all() -> None:
        for checkpoint in checkpoints:
            for name in checkpoint.shapes:
                checkpoint.read(name).sum()

    assert peak(touch_all)[1] > (COUNT - 1) * 16 * MIB


class Counting:
    """Tensors in memory, of which it is counted how many bytes are read between two releases."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.reads: list[int] = [0]

    def shapes(self) -> dict[str, torch.Tensor]:
        return {name: tensor.to("meta") for name, tensor in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        self.reads[-1] += self.tensors[name].nbytes
        return self.tensors[name].clone()

    def release(self) -> None:
        self.reads.append(0)


def test_files_are_let_go_of_within_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAPPED", 4000)
    tensors = {f"{i}.weight": torch.randn(20, 10) for i in range(30)}  # 800 bytes each
    sources = [Counting(tensors) for _ in range(5)]
    checkpoints = [Checkpoint(Path(f"step{t}"), source, t) for t, source in enumerate(sources)]
    everything = np.ones((5, 5), dtype=bool)
    assert same_weights(checkpoints, everything, list(tensors)) == [[0, 1, 2, 3, 4]]
    assert sum(sum(source.reads) for source in sources) == 2 * 4 * 30 * 800
    together = [sum(reads) for reads in zip(*(source.reads for source in sources), strict=True)]
    assert max(together) <= 4000
    # Only pairs that may be alike are read.
    for source in sources:
        source.reads = [0]
    assert same_weights(checkpoints, np.eye(5, dtype=bool), list(tensors)) == []
    assert sum(sum(source.reads) for source in sources) == 0


def test_tied_parameters_are_found_within_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAPPED", 4000)
    tensors = {"a": torch.randn(20, 10), "c": torch.randn(20, 10)}
    tensors["b"] = tensors["a"].clone()
    sources = [Counting(tensors) for _ in range(20)]
    checkpoints = [Checkpoint(Path(f"step{t}"), source, t) for t, source in enumerate(sources)]
    assert tied(checkpoints, ["a", "b", "c"]) == {"b": "a"}
    together = [sum(reads) for reads in zip(*(source.reads for source in sources), strict=True)]
    assert sum(together) >= 20 * 2 * 800
    assert max(together) <= 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float64])
@pytest.mark.parametrize("compared", [7, 2**20])
def test_what_differs_in_any_bit_is_no_duplicate(
    dtype: torch.dtype, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the entries are, and wherever they are cut."""
    monkeypatch.setattr("lightning_traj.checkpoints.duplicates.COMPARED", compared)
    monkeypatch.setattr(streaming, "MAPPED", 64 * dtype.itemsize)
    base = torch.randn(9, 11, dtype=dtype)
    base[3, 4] = float("nan")
    for at in (0, 31, 32, 50, 98):
        other = base.clone()
        view = other.view(-1)[at : at + 1].view(torch.uint8)
        view[-1] ^= 1
        pairs = [base, other, base.T.contiguous().T]  # the last is the same in another order in memory
        checkpoints = [Checkpoint(Path(f"step{t}"), Counting({"w": tensor}), t) for t, tensor in enumerate(pairs)]
        assert same_weights(checkpoints, np.ones((3, 3), dtype=bool), ["w"]) == [[0, 2]]
