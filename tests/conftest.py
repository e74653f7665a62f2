"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings

ROOT = Path(__file__).resolve().parent.parent

Snapshots = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data that the project does not ship: $LIGHTNING_TRAJ_DATA, or ../shared/data."""
    folder = Path(os.environ.get("LIGHTNING_TRAJ_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with real data; set LIGHTNING_TRAJ_DATA to one")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: on busy machines, handing them out to threads takes longer than doing them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def walk() -> Callable[..., Snapshots]:
    """Factory of the parameters of a model that drifts and wanders: a dict of named tensors for each snapshot."""

    def make(
        shapes: Mapping[str, tuple[int, ...]],
        n: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        size: float = 0.1,
    ) -> Snapshots:
        generator = torch.Generator().manual_seed(seed)
        theta = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        drift = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        snapshots = []
        for _ in range(n):
            snapshots.append({name: tensor.to(dtype) for name, tensor in theta.items()})
            for name, tensor in theta.items():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                theta[name] = tensor + size * (0.3 * drift[name] + noise)
        return snapshots

    return make


@pytest.fixture(scope="session")
def stacked() -> Callable[..., NDArray[np.float64]]:
    """The parameters of the given names (default: all) as rows, one a snapshot, in float64."""

    def stack(snapshots: Snapshots, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        rows = [[snapshot[name].double().flatten() for name in names or snapshot] for snapshot in snapshots]
        return np.stack([torch.cat(row).numpy() for row in rows])

    return stack


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Recorder]:
    """A Recorder that has taken these snapshots, one a step and ten steps an epoch, in windows end to end."""

    def record(
        snapshots: Snapshots,
        recorder: Recorder | None = None,
        first: int = 0,
        folder: Path | None = None,
        **settings: Any,
    ) -> Recorder:
        recorder = Recorder(RecordingSettings(**settings), folder) if recorder is None else recorder
        for step, snapshot in enumerate(snapshots, start=first):
            assert recorder.record(snapshot, step, step / 10)
            recorder.windows.add(snapshot, step)
            if not recorder.windows.running:
                recorder.windows.begin(snapshot, step)
        return recorder

    return record


@pytest.fixture
def fit(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``models.fit`` in a folder of its own, and without pictures: they are slow, and have tests of their own."""
    from models import fit

    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    return partial(fit, root=tmp_path)
