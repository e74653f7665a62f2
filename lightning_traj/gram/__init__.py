"""Gram matrices of a growing sequence of snapshots, on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.gram.exact_gram import ExactGram as ExactGram
    from lightning_traj.gram.inner_products import Row as Row
    from lightning_traj.gram.inner_products import local_grams as local_grams
    from lightning_traj.gram.running_gram import RunningGram as RunningGram
    from lightning_traj.gram.sketched_gram import SketchedGram as SketchedGram

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "exact_gram": ("ExactGram",),
        "inner_products": ("Row", "local_grams"),
        "running_gram": ("RunningGram",),
        "sketched_gram": ("SketchedGram",),
    },
)
