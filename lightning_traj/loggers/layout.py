"""Layout of TensorBoard's custom scalars."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lightning_traj.measures import MEASURES, shown_in

CROSS = "traj_cross"  # prefix of the angles between two callbacks' quantities, which belong to neither of them


def custom_scalars(prefixes: Sequence[str], full_tag: Callable[[str], str]) -> dict[str, dict[str, list[Any]]]:
    """Group the measures as ``MEASURES`` does; measures of one unit and range share a chart.

    Args:
        prefixes: Prefixes of the tags of all callbacks in the Trainer.
        full_tag: Returns the tag under which the logger logs a tag.

    Returns:
        {category: {chart: [kind, regular expressions of the tags in it]}}.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for prefix in prefixes:
        charts: dict[tuple[str, str, str], list[str]] = {}
        for name, measure in MEASURES.items():
            charts.setdefault((measure.group, measure.unit, measure.range), []).append(name)
        for (group, _, _), names in charts.items():
            tags = [f"^{re.escape(full_tag(f'{prefix}/{name}'))}$" for name in names]
            layout.setdefault(f"{prefix}: {group}", {})[", ".join(names)] = ["Multiline", tags]
        layers = re.escape(full_tag(f"{prefix}_layers/"))
        curves = {f"{measure} by role": f"^{layers}{measure}/[^/]+$" for measure in shown_in("role")}
        curves["q, k, v heterogeneity"] = f"^{layers}heterogeneity_(mean|max)$"
        layout[f"{prefix}: Layers and roles"] = {chart: ["Multiline", [tags]] for chart, tags in curves.items()}
    if len(prefixes) > 1:
        crossings = f"^{re.escape(full_tag(f'{CROSS}/'))}"
        layout["Angles between quantities"] = {"degrees": ["Multiline", [crossings]]}
    return layout
