"""A still picture that stays in a saved notebook, with its alternative text."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tinker_utils.plotting import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_picture(drawing: Figure, alternative_text: str) -> None:
    """Display a figure as a still picture that stays in the saved notebook, with its alternative text."""
    from IPython.display import display

    display(  # type: ignore[no-untyped-call]
        {"text/plain": "<picture>", "image/png": base64.b64encode(png(drawing)).decode("ascii")},
        metadata={"image/png": {"alt": alternative_text}},
        raw=True,
    )
