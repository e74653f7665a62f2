"""The command line: lightning-traj analyze (checkpoints of a run that is over) and compare (several runs)."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_traj.cli.arguments import contradiction, make_parser
from lightning_traj.text import printable

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

DONE, FAILED, SKIPPED, SEVERAL, INTERRUPTED = 0, 1, 3, 4, 130  # 2 is argparse's, for wrong usage
ALL = "all"  # --series all: a report of each
RESUMPTION = ".unfinished"  # in the folder of the results, until they are there


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    Args:
        arguments: Words of the command line; None for those of the process.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if wrong := contradiction(options):
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
    run = {"analyze": _analyze, "compare": _compare}[options.command]
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
        OSError: It cannot.
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
        names = series_in(find(options.paths), **read, explicit=set(options.paths))
        chosen = [*names] if len(names) > 1 else [None]
    folders = {name: options.out if len(chosen) == 1 else options.out / str(name) for name in chosen}
    files = {name: options.out / (RESUMPTION if len(chosen) == 1 else f"{RESUMPTION}-{name}") for name in chosen}
    trajectories = {}
    for name in chosen:  # all of them before anything is written: interrupted, the same command goes on
        try:
            trajectories[name] = from_checkpoints(
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
        except SeveralSeries as error:
            _fail(str(error))
            return SEVERAL
        except ValueError as error:
            if len(chosen) == 1:
                return _fail(str(error))
            _fail(f"series {name}: {error}")
    if not trajectories:
        return FAILED
    codes = [_write(trajectory, folders[name], options) for name, trajectory in trajectories.items()]
    if len(trajectories) < len(chosen):
        codes.append(SKIPPED)
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
            print(f"lightning-traj: warning: {printable(finding.text)}", file=sys.stderr)
        print(f"Note: {printable(finding.text)}")
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


def _fail(message: str) -> int:
    print(f"lightning-traj: error: {printable(message)}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
