"""Figures as pixels, as bytes of a PNG file, and as files."""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from lightning_traj.files import replace_atomically
from lightning_traj.plots.canvas import own_style
from lightning_traj.text import printable


@own_style()
def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """Return the pixels of a figure, uint8 [height, width, 3]."""
    _replace_control_characters(figure)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


@own_style()
def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG. An existing file is replaced in one step, so no reader ever sees half a file."""
    _replace_control_characters(figure)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png")


@own_style()
def to_png(figure: Figure, scale: float = 1.0) -> bytes:
    """Return a figure as the bytes of a PNG file, with `scale` times as many pixels a side as ``to_rgb`` returns."""
    _replace_control_characters(figure)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=scale * figure.dpi)
    return png.getvalue()


def _replace_control_characters(figure: Figure) -> None:
    """Show names with control characters as the command prints them; matplotlib would warn that fonts lack these."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (shown := printable(text.get_text())) != text.get_text():
            text.set_text(shown)
