"""Several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.compare.joint import joint_gram as joint_gram
    from lightning_traj.compare.runs import load_runs as load_runs
    from lightning_traj.compare.table import comparison_table as comparison_table
    from lightning_traj.compare.write import write_comparison as write_comparison

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "joint": ("joint_gram",),
        "runs": ("load_runs",),
        "table": ("comparison_table",),
        "write": ("write_comparison",),
    },
)
