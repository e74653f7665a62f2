"""Trains what has not been trained yet, and says of each claim whether the runs support it.

python -m recipes.hallmarks                 # H1 to H7
python -m recipes.hallmarks --claim=H1
python -m recipes.hallmarks --claim=H1 --images.source=cifar10 --images.data_path=path/to/cifar-10-batches-bin
python -m recipes.hallmarks --help

Every finished run is a line of <folder>/runs.jsonl: it can be stopped and started at any time. Of each claim it
writes <out>/H1.md, with the tables and the verdict, and <out>/H1.png; of all together, summary.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

from lightning_traj.files.atomic import replace_atomically
from lightning_traj.plots import save_png
from recipes.hallmarks import report
from recipes.hallmarks.claims import CLAIMS, Base
from recipes.hallmarks.reading import reading
from recipes.hallmarks.runs import Images, Text
from recipes.hallmarks.sweep import Sweep
from recipes.hallmarks.verdict import judge


def hallmarks(
    claim: Literal["all", "H1", "H2", "H3", "H4", "H5", "H6", "H7", "maps"] = "all",
    images: Images = Images(),  # noqa: B008 (it is frozen)
    text: Text = Text(),  # noqa: B008 (likewise)
    learning_rates: tuple[float, ...] = Base.learning_rates,
    batch_sizes: tuple[int, ...] = Base.batch_sizes,
    widths: tuple[int, ...] = Base.widths,
    seeds: int = 3,
    folder: Path = Path("logs/hallmarks"),
    out: Path | None = None,
    workers: int | None = None,
    threads: int = 1,
) -> None:
    """Train what is missing, judge, and write tables and figures.

    Args:
        claim: which one; "maps" draws the trajectory maps of four runs, to learn reading them.
        images: what the runs of H1 to H4 and H7 start from.
        text: what the runs of H5 and H6 start from.
        learning_rates: of H2 and H4.
        batch_sizes: of H2.
        widths: of H5 and H6.
        seeds: runs of each setting, with the seeds 0, 1, 2, …
        folder: of the runs; what is finished there is not made again.
        out: where tables and figures go; None: the same folder.
        workers: runs at a time; None: one a core, and one where there is a GPU.
        threads: of torch, each.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: pass at least 1, and 2 or more for a verdict")
    base = Base(images, text, tuple(learning_rates), tuple(batch_sizes), tuple(widths))
    out = out or folder
    sweep = Sweep(folder, workers, threads)
    found, failed = {}, []
    for number, asked in CLAIMS.items():
        if claim not in ("all", number):
            continue
        print(f"{number}: {asked.text}", flush=True)
        variants = asked.variants(base)
        try:
            runs = sweep.complete(variants.values(), range(seeds))
        except RuntimeError as error:  # the other claims may have what they need
            failed.append(f"{number}: {error}")
            continue
        lines = {variant: runs[setting] for variant, setting in variants.items()}
        effects = asked.effects(report.values_of(lines), base)
        with replace_atomically(out / f"{number}.md") as temporary:
            temporary.write_text(report.page(number, asked, effects, lines), encoding="utf-8")
        save_png(report.figure(number, asked, effects, lines), out / f"{number}.png")
        found[number] = asked, effects
        print(f"   {judge(effects)}: {out / f'{number}.md'}\n", flush=True)
    if claim == "all":
        with replace_atomically(out / "summary.md") as temporary:
            temporary.write_text(report.summary(found) + "\n", encoding="utf-8")
    if claim in ("all", "maps"):
        try:
            save_png(reading(sweep, base), out / "maps.png")
        except (RuntimeError, FileNotFoundError) as error:
            failed.append(f"maps: {error}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    try:
        auto_cli(hallmarks, as_positional=False)
    except KeyboardInterrupt:
        raise SystemExit("Stopped. What is finished is kept: the same command goes on.") from None
