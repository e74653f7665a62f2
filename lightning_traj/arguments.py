"""Are the arguments of TrajectoryCallback what they should be? Asked before anything else happens."""

from __future__ import annotations

import os

from lightning_traj.schedule import Schedule


def check_arguments(
    schedule: object,
    snapshot: object,
    sketch_dim: object,
    blocks: object,
    include: object,
    exclude: object,
    max_snapshots: object,
    seed: object,
    dirpath: object,
    name: object,
) -> None:
    """Raise for a wrong argument, naming it, its value and the remedy."""
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        raise TypeError(f"schedule={schedule!r} is no schedule: pass EveryNEpochs(n) or EveryNSteps(n).")
    for argument, value, choices in (("snapshot", snapshot, ("sketch", "full")), ("blocks", blocks, ("tensor",))):
        if value not in choices:
            raise ValueError(f"{argument}={value!r}: pass {' or '.join(map(repr, choices))}.")
    for argument, value, least in (
        ("sketch_dim", sketch_dim, 1),
        ("max_snapshots", max_snapshots, 4),
        ("seed", seed, None),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{argument}={value!r} is no integer: pass an int.")
        if least is not None and value < least:
            raise ValueError(f"{argument}={value}: pass at least {least}.")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        listed = [patterns] if isinstance(patterns, str) else [] if patterns is None else patterns
        if not isinstance(listed, (list, tuple)) or not all(isinstance(pattern, str) for pattern in listed):
            raise TypeError(
                f'{argument}={patterns!r}: pass a glob pattern such as "*.weight", a list of them, or None.'
            )
    if dirpath is not None and not isinstance(dirpath, (str, os.PathLike)):
        raise TypeError(f"dirpath={dirpath!r} is no path: pass a str or a Path, or None for the folder of the logs.")
    if not isinstance(name, str):
        raise TypeError(f'name={name!r} is no string: pass one such as "traj".')
    if not name or name.strip("._-") == "" or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(
            f"name={name!r}: pass letters, digits, '.', '_' and '-'; it is part of tags and of file names."
        )
