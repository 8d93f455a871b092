"""What stays in a saved notebook: a still picture with its alternative text, and a word where a widget was."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from tinker_utils.dashboard_html import LOST_WIDGET
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


def show_widget(widget: Any) -> None:
    """Display a widget, and what takes its place where the notebook is opened without its kernel."""
    from IPython.display import display

    display(widget._repr_mimebundle_(), raw=True)  # type: ignore[no-untyped-call]
    display({"text/plain": "", "text/html": LOST_WIDGET}, raw=True)  # type: ignore[no-untyped-call]
