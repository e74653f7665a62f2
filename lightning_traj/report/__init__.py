"""Tables and HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.report.page import Markup as Markup
    from lightning_traj.report.summary import CLOSE as CLOSE
    from lightning_traj.report.summary import print_summary as print_summary
    from lightning_traj.report.summary import with_error as with_error
    from lightning_traj.report.trajectory_page import FOOTER as FOOTER
    from lightning_traj.report.trajectory_page import SHARPNESS as SHARPNESS
    from lightning_traj.report.trajectory_page import trajectory_report as trajectory_report

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "page": ("Markup",),
        "summary": ("CLOSE", "print_summary", "with_error"),
        "trajectory_page": ("FOOTER", "SHARPNESS", "trajectory_report"),
    },
)
