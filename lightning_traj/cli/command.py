"""The command line: lightning-traj analyze (checkpoints of a run that is over) and compare (several runs)."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning_traj
from lightning_traj.files import as_place

if TYPE_CHECKING:
    from lightning_traj.blocks import FusedLayout
    from lightning_traj.trajectory import Trajectory

DONE, FAILED, SKIPPED, SEVERAL, INTERRUPTED = 0, 1, 3, 4, 130  # 2 is argparse's, for wrong usage
ALL = "all"  # --series all: a report of each
RESUMPTION = ".unfinished"  # in the folder of the results, until they are there
EXIT_CODES = """exit codes:
  0    done
  1    failed: the message says why; there are no new results
  2    wrong usage
  3    done, but some checkpoints could not be read (--skip-bad)
  4    the files are of several series: they are listed, and --series picks one
  130  interrupted: the same command goes on where it was
"""
ANALYZE = """The measures of a run that is over, from the checkpoints that it left: Lightning's .ckpt, state dicts
(.pt, .pth, .bin), TorchScript, safetensors, archives of Stable-Baselines3, folders of Hugging Face and diffusers, and
folders of torch.distributed.checkpoint. Checkpoints are only read: nothing in them is executed."""
WRITTEN = """written to DIR:
  report.html              the whole report in one file, without a network
  trajectory.safetensors   what it is made of, for Trajectory.load and for compare
  tensorboard/             the same charts and pictures as in training: tensorboard --logdir DIR
  *.png                    maps, path and overview
  trajectory.csv           with --csv: a row a checkpoint, a column a measure

"""
COMPARE = """Several runs side by side, from the trajectories that TrajectoryCallback or analyze have written: a table
with their hyperparameters, series, maps on one colour scale and, where their sketches can be compared with each other,
the angles between runs. No weights are needed."""
COMPARED = """written to DIR:
  comparison.html          the whole report in one file, without a network
  comparison.csv           a row a run
  tensorboard/             the runs' series and, in the tab HPARAMS, their final measures
  *.png                    the figures

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code.

    Args:
        arguments: Default: those of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if wrong := _contradiction(options):
        parser.error(wrong)
    out: Path = options.out
    try:
        if out.exists() and not out.is_dir():
            return _fail(f"--out {out} is a file: name a folder.")
        present = [child.name for child in out.iterdir() if not child.name.startswith(".")] if out.exists() else []
        _check_writable(out)
    except OSError as error:  # before hours of reading
        parser.error(f"--out {str(out)[:100]}: nothing can be written there ({error.strerror}): name another folder")
    if present and not options.overwrite:
        return _fail(f"--out {out} is not empty ({present[0]}, …): name another folder, or pass --overwrite.")
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        goes_on = "goes on where it was" if run is _analyze else "with --overwrite starts anew"
        print(f"interrupted: the same command {goes_on}.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError) as error:
        return _fail(str(error))


def _check_writable(out: Path) -> None:
    """Check that a folder can be written to, or made.

    Raises:
        OSError: it can't.
    """
    out = out.absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
    for name in out.relative_to(there).parts:
        (there / name).exists()  # an error where the name is too long
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write to {there}")


def _analyze(options: argparse.Namespace) -> int:
    from lightning_traj.checkpoints import SeveralSeries, find, from_checkpoints, series_in

    read = {name: getattr(options, name) for name in ("key", "weights", "order", "partial", "skip_bad")}
    chosen: list[str | None] = [options.series]
    if options.series == ALL:
        names = series_in(find(options.paths), **read)
        chosen = [*names] if len(names) > 1 else [None]
    folders = {name: options.out if len(chosen) == 1 else options.out / str(name) for name in chosen}
    files = {name: options.out / (RESUMPTION if len(chosen) == 1 else f"{RESUMPTION}-{name}") for name in chosen}
    try:
        trajectories = {  # all of them before anything is written: interrupted, the same command goes on
            name: from_checkpoints(
                options.paths,
                **read,
                series=name,
                snapshot="sketch" if options.sketch else "full",
                sketch_dim=options.sketch_dim,
                seed=options.seed or 0,
                blocks=options.blocks,
                include=options.include,
                exclude=options.exclude,
                fused=dict(options.fused or ()),
                processes=options.processes,
                resume=files[name],
                progress=sys.stderr.isatty(),
            )
            for name in chosen
        }
    except SeveralSeries as error:
        _fail(str(error))
        return SEVERAL
    codes = [_write(trajectories[name], folders[name], options) for name in chosen]
    for file in files.values():
        file.unlink(missing_ok=True)
    return max(codes)


def _write(trajectory: Trajectory, out: Path, options: argparse.Namespace) -> int:
    """Write the results of one series, and print what matters."""
    # Pictures and tables are imported after the first file has been read: whoever mistyped a name is told sooner.
    from lightning_traj.cli.results import EVENTS, TRAJECTORY, write_analysis
    from lightning_traj.report import print_summary

    report = write_analysis(trajectory, out, csv=options.csv, overwrite=options.overwrite)[0]
    print_summary(trajectory, "traj", trajectory.provenance.track, str(out / TRAJECTORY), [str(out / EVENTS)])
    source = trajectory.provenance.source
    findings = source.findings if source else ()
    for finding in findings:
        if finding.severity == "warning":
            print(f"lightning-traj: warning: {finding.text}", file=sys.stderr)
        print(f"Note: {finding.text}")
    print(f"Report: {report}")
    return SKIPPED if any(finding.severity == "error" for finding in findings) else DONE


def _compare(options: argparse.Namespace) -> int:
    from lightning_traj.compare import load_runs

    runs = load_runs(options.runs, rename=dict(options.rename or ()))
    from rich.console import Console

    from lightning_traj.compare import comparison_table, write_comparison

    report = write_comparison(runs, options.out)[0]
    Console().print(comparison_table(runs))
    print(f"Report: {report}")
    return DONE


def _contradiction(options: argparse.Namespace) -> str:
    """What was asked for and would have no effect, or cannot be; empty where all is well."""
    if options.run is _compare:
        return "compare: name two runs at least" if len(options.runs) < 2 else ""
    if options.processes < 1:
        return f"--processes {options.processes}: name one at least"
    if options.sketch and options.processes > 1:
        return "--processes is for exact analyses: leave it out with --sketch"
    if not options.sketch and (options.sketch_dim, options.seed) != (None, None):
        return "--sketch-dim and --seed are for --sketch: add that, or leave them out"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-traj", description="How directional was the path of the optimizer?", epilog=EXIT_CODES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"lightning-traj {lightning_traj.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    analyze = _command(commands, "analyze", "measures of a run, from its checkpoints", ANALYZE, WRITTEN, _analyze)
    analyze.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="checkpoints, or folders that hold some (two at least)"
    )
    _add_out(analyze)
    read = analyze.add_argument_group("what is read")
    read.add_argument(
        "--order",
        choices=("step", "given"),
        default="step",
        help="by optimizer steps, from the file or its name, or the number that varies in the names (default), or in "
        "the order of the arguments",
    )
    read.add_argument(
        "--series",
        metavar="NAME",
        help="which series to take, where the files are of several (a GAN, weights and their average): NAME is one of "
        "those that are listed without this option; all: a report of each, in folders of DIR",
    )
    read.add_argument(
        "--partial",
        action="store_true",
        help="take the files for one series even if they share less than half of their parameters",
    )
    read.add_argument("--key", help="where in a file the state dict is nested, such as ema.model; default: as usual")
    read.add_argument(
        "--weights",
        choices=("raw", "average"),
        default="raw",
        help="which ones of checkpoints of Lightning's WeightAveraging (default: raw)",
    )
    read.add_argument("--skip-bad", action="store_true", help="leave out what cannot be read, and say so")
    counted = analyze.add_argument_group("what is counted")
    counted.add_argument("--include", action="append", metavar="GLOB", help='names of parameters, such as "*.weight"')
    counted.add_argument("--exclude", action="append", metavar="GLOB", help="names of parameters to leave out")
    counted.add_argument(
        "--blocks",
        choices=("tensor", "layer", "role", "model"),
        default="tensor",
        help="the finest piece that the report tells apart (default: tensor)",
    )
    counted.add_argument(
        "--fused",
        action="append",
        type=_fused,
        metavar="GLOB=PARTS",
        help='how a fused projection lies, such as "*.to_qkv.weight=q:1,k:1,v:1"; add /groups=8 where that repeats for '
        "each of 8 heads or groups, /axis=1 for another axis",
    )
    how = analyze.add_argument_group("how")
    how.add_argument(
        "--sketch",
        action="store_true",
        help="one pass over each checkpoint, with standard errors; can be compared with runs recorded in training",
    )
    how.add_argument("--sketch-dim", type=int, metavar="N", help="length of a sketch (default: 512)")
    how.add_argument("--seed", type=int, metavar="N", help="of the sketch (default: 0)")
    how.add_argument("--processes", type=int, default=1, metavar="N", help="work in N processes (default: 1)")
    how.add_argument("--csv", action="store_true", help="write the series as CSV too")

    compare = _command(commands, "compare", "several runs side by side", COMPARE, COMPARED, _compare)
    compare.add_argument(
        "runs",
        nargs="+",
        type=as_place,
        metavar="RUN",
        help="trajectory files, or log folders that hold one (two at least); URLs such as s3://… will do",
    )
    _add_out(compare)
    compare.add_argument(
        "--rename",
        action="append",
        type=_renaming,
        metavar="OLD=NEW",
        help="take names that begin with OLD (such as net.) as beginning with NEW (such as model.)",
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
    written: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=written + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results: new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace results of the same names in DIR")


def _fused(text: str) -> tuple[str, FusedLayout]:
    """``"*.to_qkv.weight=q:1,k:1,v:1/groups=8/axis=1"``."""
    from lightning_traj.blocks import FusedLayout

    pattern, _, layout = text.partition("=")
    parts, *options = layout.split("/")
    try:
        sizes = {name: int(size) for name, size in (part.split(":") for part in parts.split(","))}
        return pattern, FusedLayout(sizes, **{name: int(value) for name, value in (o.split("=") for o in options)})
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f'{text!r}: write "*.to_qkv.weight=q:1,k:1,v:1" ({error})') from error


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise argparse.ArgumentTypeError(f"{text!r}: write OLD=NEW, such as net.=model.")
    return old, new


def _fail(message: str) -> int:
    print(f"lightning-traj: error: {message}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
