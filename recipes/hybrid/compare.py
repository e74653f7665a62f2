"""Compares what is trained from when on: runs what has not been run yet, and prints the table.

python -m recipes.hybrid.compare
python -m recipes.hybrid.compare --seeds=[0,1] --setting.epochs=10
python -m recipes.hybrid.compare --help

Every finished run is a line of JSON in --results: what is there already is not run again, so that it can be
stopped and started at any time. Runs with other settings go into another file.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from recipes.hybrid.run import VARIANTS, Setting, run
from recipes.hybrid.table import comparison_table


def compare(
    setting: Setting = Setting(),  # noqa: B008 (it is frozen)
    seeds: tuple[int, ...] = (0, 1, 2),
    variants: tuple[str, ...] = tuple(VARIANTS),
    results: Path = Path("logs/hybrid/results.jsonl"),
    threads: int = 1,
) -> None:
    """Run what is missing, then print the table.

    Args:
        setting: of all runs.
        seeds: of initialisation, order and augmentation; each variant is run with each.
        variants: which, of those of run.py.
        results: file with a line of JSON a run.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    done = read(results, setting)
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for variant in variants:
            if any((row["variant"], row["seed"]) == (variant, seed) for row in done):
                continue
            print(f"seed {seed}: {variant}", flush=True)
            row = {"variant": variant, "seed": seed, "setting": plain(setting), **run(setting, variant, seed)}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
    print(comparison_table(done))


def plain(setting: Setting) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(setting), default=str))


def read(results: Path, setting: Setting) -> list[dict[str, Any]]:
    """The runs in a file; all must be of this setting."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for row in rows:
        if row["setting"] != plain(setting):
            raise ValueError(f"results={results} has runs with {row['setting']}: name another file for {setting}.")
    return rows


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    auto_cli(compare, as_positional=False)
