"""What is written on a figure, and whether it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def written(figure: Figure) -> list[Text]:
    """All text that is drawn: ticks beyond the limits of an axis are not."""
    texts = figure.texts.copy()
    for axes in figure.axes:
        texts += axes.texts
        if (legend := axes.get_legend()) is not None:
            texts += legend.get_texts()
        if not axes.axison:
            continue
        texts += [axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            texts += [label for place, label in ticks if low <= place <= high]
    return [text for text in texts if text.get_text()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in written(figure)]


def assert_readable(figure: Figure, on_others: Sequence[str] = ()) -> None:
    """Everything written is inside the figure, and apart from all else, but for what may lie on others."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in written(figure)]
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, f"{text!r} is cut off"
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, f"{text!r} is cut off"
    free = [(text, box) for text, box in boxes if text.strip() not in on_others]
    for (one, box), (other, its) in combinations(free, 2):
        assert not box.overlaps(its), f"{one!r} lies on {other!r}"
