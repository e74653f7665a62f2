"""Runs of a sweep: those that are finished are lines of JSON, and only the others are trained."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import time
import warnings
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from importlib.metadata import version
from math import nan
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any

import lightning as L
import torch

from recipes.hallmarks.runs import Setting, name_of, plain

Line = dict[str, Any]
"""A finished run: its setting, its seed, where and how long it ran, and the values that were noted of it."""

FINISHED = "runs.jsonl"
TRAJECTORY = "trajectory.safetensors"
PICTURED = 0  # the seed whose runs have pictures in TensorBoard; in a short run they take half of the time


class Sweep:
    """The runs in a folder.

    Args:
        folder: holds ``runs.jsonl``, a line a finished run, and a folder a run with its logs and its trajectory.
        workers: runs at a time, each in a process of its own; None: as many as cores, and one where there is a GPU.
        threads: of torch, each.
    """

    def __init__(self, folder: Path, workers: int | None = None, threads: int = 1) -> None:
        self.folder = folder
        self.workers = workers or (1 if torch.accelerator.is_available() else os.cpu_count() or 1)
        self.threads = threads

    def finished(self) -> list[Line]:
        """What ``runs.jsonl`` holds. A line that was cut short is as if it were not there."""
        lines = []
        path = self.folder / FINISHED
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines += [read(text)] if text else []
            except json.JSONDecodeError:
                print(f"{path}: a line was cut short; its run is made again")
        return lines

    def complete(self, settings: Iterable[Setting], seeds: Collection[int]) -> dict[Setting, list[Line]]:
        """The runs of each setting, one a seed in their order; those that are missing are trained first.

        Raises:
            RuntimeError: if runs failed; all others have been made, and are not made again.
            ValueError, FileNotFoundError: if a setting makes no run; none has been made then.
        """
        settings = list(dict.fromkeys(settings))
        known = {key(line["setting"], line["seed"]): line for line in self.finished()}
        missing = [  # in a sweep over sizes the last ones take longest: begun first, they are not waited for at the end
            (setting, seed)
            for setting in reversed(settings)
            for seed in seeds
            if key(plain(setting), seed) not in known
        ]
        if missing:
            print(f"{len(settings) * len(seeds)} runs, of which {len(missing)} are missing", flush=True)
            missing[0][0].build()  # wrong data are said once, here, and not by every run
            for line in self._train(missing):
                known[key(line["setting"], line["seed"])] = line
        return {setting: [known[key(plain(setting), seed)] for seed in seeds] for setting in settings}

    def trajectory(self, setting: Setting, seed: int) -> Path:
        """The file of a finished run's trajectory.

        Raises:
            FileNotFoundError: if it was made elsewhere, or removed.
        """
        path = self.folder / name_of(setting) / f"seed-{seed}" / TRAJECTORY
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: there is no such file, though {self.folder / FINISHED} says that this run is finished. "
                "Name another folder, to make it again"
            )
        return path

    def _train(self, missing: list[tuple[Setting, int]]) -> Iterable[Line]:
        failed: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        workers = min(self.workers, len(missing))
        context = get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
        try:
            running = {pool.submit(train, *run, self.folder, self.threads, workers): run for run in missing}
            for count, future in enumerate(as_completed(running), start=1):
                setting, seed = running[future]
                name = f"{name_of(setting)}, seed {seed}"
                try:
                    line = future.result()
                except Exception as error:
                    failed.append(f"{name}: {type(error).__name__}: {error}")
                    print(f"{count}/{len(missing)}  failed: {failed[-1]}", flush=True)
                    continue
                print(f"{count}/{len(missing)}  {name}: {line['seconds']:.0f} s", flush=True)
                yield self._append(line)
        except BaseException:  # Ctrl-C: what is being trained is given up, and nothing else begun
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.kill()
            raise
        pool.shutdown()
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(missing)} runs failed:\n" + "\n".join(failed))

    def _append(self, line: Line) -> Line:
        """Write it; and what is read again."""
        path = self.folder / FINISHED
        text = json.dumps(line)
        cut_short = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * cut_short + text + "\n")
            file.flush()
            os.fsync(file.fileno())
        return read(text)


def key(setting: dict[str, Any], seed: int) -> tuple[str, int]:
    """What a finished run is found by."""
    return json.dumps(setting), seed


def read(text: str) -> Line:
    """A line; what is undefined is NaN in it."""

    def defined(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: defined(value) for name, value in values.items()}
        return [defined(value) for value in values] if isinstance(values, list) else nan if values is None else values

    line = json.loads(text)
    return line | {"values": defined(line["values"])}


def end_with_parent() -> None:
    """A process that trains is not to outlive the command, however that was killed, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def train(setting: Setting, seed: int, folder: Path, threads: int, workers: int) -> Line:
    """One run, in this process. Its folder has its name only once it is finished."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    L.seed_everything(seed, verbose=False)
    place = folder / name_of(setting) / f"seed-{seed}"
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f"{place.name}-unfinished-", dir=place.parent))
    unfinished.chmod(0o755)
    start = time.perf_counter()
    with (unfinished / "output.txt").open("w") as output, redirect_stdout(output):
        values = setting.train(unfinished, figures=seed == PICTURED)
    seconds = time.perf_counter() - start
    shutil.rmtree(place, ignore_errors=True)  # of a run whose line was lost
    unfinished.rename(place)
    return {
        "setting": plain(setting),
        "seed": seed,
        "seconds": round(seconds, 1),
        "machine": machine() | {"threads": str(threads), "runs at a time": str(workers)},
        "values": values,
    }


def machine() -> dict[str, str]:
    """Where a run was made: processor or GPU, and versions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")]
    processor = f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = {name: version(name) for name in ("lightning_traj", "torch", "lightning", "numpy", "transformers")}
    return {"processor": f"{processor}, {gpu}", "Python": platform.python_version(), **packages}
