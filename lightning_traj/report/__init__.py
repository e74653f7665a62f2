"""Tables and HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.report import page as page
    from lightning_traj.report import summary as summary
    from lightning_traj.report.summary import print_summary as print_summary
    from lightning_traj.report.trajectory_page import trajectory_report as trajectory_report

__getattr__, __dir__ = lazy_exports(
    __name__,
    {"summary": ("print_summary",), "trajectory_page": ("trajectory_report",)},
    modules=("page", "summary"),
)
