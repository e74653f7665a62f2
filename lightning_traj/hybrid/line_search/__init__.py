"""Line search along the recent direction of the trajectory; recording knows nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.hybrid.line_search.probe import Probe as Probe
    from lightning_traj.hybrid.line_search.probe import SearchResult as SearchResult
    from lightning_traj.hybrid.line_search.search import DirectionSearch as DirectionSearch
    from lightning_traj.hybrid.line_search.search import describe as describe
    from lightning_traj.hybrid.line_search.search import summary as summary
    from lightning_traj.hybrid.line_search.settings import LineSearch as LineSearch

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "probe": ("Probe", "SearchResult"),
        "search": ("DirectionSearch", "describe", "summary"),
        "settings": ("LineSearch",),
    },
)
