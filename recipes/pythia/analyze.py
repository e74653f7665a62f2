"""The trajectory of a language model from its published revisions, and how q, k and v differ in each layer.

python -m recipes.pythia.analyze path/to/pythia-70m --out analysis
python -m recipes.pythia.analyze path/to/pythia-70m --out analysis --sketch --exclude "*norm.weight" --exclude "*.bias"

The folder holds step0, step1, step2, …, step143000, or some of them, each a Hugging Face folder. Further options are
those of lightning-traj analyze, which does the work: lightning-traj analyze --help.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_traj import Trajectory
from lightning_traj.checkpoints.formats.opening import is_checkpoint
from lightning_traj.cli import command as cli
from lightning_traj.cli.results import TRAJECTORY
from lightning_traj.files.atomic import replace_atomically
from lightning_traj.plots import save_png
from lightning_traj.plots.attention import heterogeneity
from lightning_traj.trajectory import Finding
from lightning_traj.trajectory import by_layer as layers
from recipes.pythia.revisions import PUBLISHED

EXPECTED = (
    "Expected a folder with the revisions step0, step1, …, each with config.json and its weights: "
    "recipes/pythia/README.md tells how to get those of Pythia."
)
ABOUT_SAME = (
    "Revisions of different steps with the same weights were published by mistake; move all but the right one out of "
    "the folder, and run this again. (step0 and step1 of Pythia are reported to be the same at every size.)"
)
COLUMNS = ("q", "k", "v", "heterogeneity")


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse, and tell what is particular to language models; returns the exit code of ``lightning-traj analyze``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pythia.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("revisions", type=Path, help="folder with step0, step1, …")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results: new or empty")
    options, others = parser.parse_known_args(arguments)
    try:
        steps = steps_in(options.revisions)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED
    code = cli.main(["analyze", str(options.revisions), "--out", str(options.out), *others])
    if code not in (cli.DONE, cli.SKIPPED):
        return code
    trajectory = Trajectory.load(options.out / TRAJECTORY)
    rows = layers.attention(trajectory)
    source = trajectory.provenance.source
    for note in remarks(steps, source.findings if source else (), rows):
        print(f"Note: {note}")
    if rows:
        Console().print(attention_table(rows))
        write_attention(trajectory, rows, options.out)
    return code


def steps_in(revisions: Path) -> list[int]:
    """The steps of which a folder has revisions, in order."""
    if not revisions.is_dir():
        raise FileNotFoundError(f"{revisions}: there is no such folder. {EXPECTED}")
    named = {path: path.name.removeprefix("step") for path in revisions.glob("step*")}
    steps = sorted(int(step) for path, step in named.items() if step.isdecimal() and is_checkpoint(path))
    if len(steps) < 2:
        raise ValueError(f"{revisions} holds {len(steps)} revision(s), and a trajectory takes two at least. {EXPECTED}")
    return steps


def remarks(steps: Collection[int], findings: Collection[Finding], rows: Mapping[str, object]) -> list[str]:
    """What there is to say of these revisions, besides the findings of any checkpoints."""
    notes = []
    published = [step for step in PUBLISHED if step <= max(steps)]
    if missing := [step for step in published if step not in steps]:
        shown = ", ".join(map(str, missing[:4])) + (", …" if len(missing) > 4 else "")
        notes.append(f"{len(missing)} of the {len(published)} steps that Pythia has until then are not here ({shown}).")
    if any(finding.kind == "duplicate" for finding in findings):
        notes.append(ABOUT_SAME)
    if not rows:
        notes.append("no q, k and v are counted, so there is no heterogeneity to tell.")
    return notes


def attention_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("attention", *COLUMNS, title="mean directional similarity, and the largest less the smallest")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4f}" for column in COLUMNS))
    return table


def write_attention(trajectory: Trajectory, rows: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """``heterogeneity.csv``, a row a layer, and its figure."""
    with replace_atomically(out / "heterogeneity.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["attention", *COLUMNS])
        writer.writerows([name, *(row[column] for column in COLUMNS)] for name, row in rows.items())
    save_png(heterogeneity(trajectory), out / "heterogeneity.png")
    print(f"Heterogeneity of q, k and v: {out / 'heterogeneity.csv'}, {out / 'heterogeneity.png'}")


if __name__ == "__main__":
    sys.exit(main())
