"""Arguments of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import lightning_traj
from lightning_traj.files import as_place

if TYPE_CHECKING:
    from lightning_traj.blocks import FusedLayout

EXIT_CODES = """exit codes:
  0    done
  1    failed: the message says why; there are no new results
  2    wrong usage
  3    done, but some checkpoints (--skip-bad) or series (--series all) could not be read
  4    the files are of several series: they are listed, and --series picks one
  130  interrupted: the same command goes on where it was
"""
ANALYZE = """The measures of a run that is over, from the checkpoints that it left: Lightning's .ckpt, state dicts
(.pt, .pth, .bin), TorchScript, safetensors, archives of Stable-Baselines3, folders of Hugging Face, accelerate and
diffusers, and folders of torch.distributed.checkpoint. Checkpoints are only read: nothing in them is executed."""
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


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, whose options have the name of the command as ``command``."""
    parser = argparse.ArgumentParser(
        prog="lightning-traj", description="How directional was the path of the optimizer?", epilog=EXIT_CODES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"lightning-traj {lightning_traj.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_analyze(commands)
    _add_compare(commands)
    return parser


def contradiction(options: argparse.Namespace) -> str:
    """Return why options do not go together or would have no effect; empty if they are all right."""
    if options.command == "compare":
        return "compare: name two runs at least" if len(options.runs) < 2 else ""
    if options.processes < 1:
        return f"--processes {options.processes}: name one at least"
    if options.sketch and options.processes > 1:
        return "--processes is for exact analyses: leave it out with --sketch"
    if not options.sketch and (options.sketch_dim, options.seed) != (None, None):
        return "--sketch-dim and --seed are for --sketch: add that, or leave them out"
    return ""


def _add_analyze(commands: Commands) -> None:
    analyze = _command(commands, "analyze", "measures of a run, from its checkpoints", ANALYZE, WRITTEN)
    analyze.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="checkpoints, or folders that hold some (two at least)"
    )
    _add_out(analyze)
    _add_reading(analyze)
    _add_counting(analyze)
    how = analyze.add_argument_group("how")
    how.add_argument(
        "--sketch",
        action="store_true",
        help="one pass over each checkpoint, with standard errors; can be compared with runs recorded in training",
    )
    how.add_argument("--sketch-dim", type=int, metavar="N", help="length of a sketch (default: 512)")
    how.add_argument("--seed", type=int, metavar="N", help="seed of the sketch (default: 0)")
    how.add_argument("--processes", type=int, default=1, metavar="N", help="work in N processes (default: 1)")
    how.add_argument("--csv", action="store_true", help="write the series as CSV too")


def _add_reading(analyze: argparse.ArgumentParser) -> None:
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


def _add_counting(analyze: argparse.ArgumentParser) -> None:
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


def _add_compare(commands: Commands) -> None:
    compare = _command(commands, "compare", "several runs side by side", COMPARE, COMPARED)
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


def _command(
    commands: Commands,
    name: str,
    summary: str,
    description: str,
    written: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=written + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results: new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace results of the same names in DIR")


def _fused(text: str) -> tuple[str, FusedLayout]:
    """Parse a pattern and a layout, such as ``"*.to_qkv.weight=q:1,k:1,v:1/groups=8/axis=1"``."""
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
