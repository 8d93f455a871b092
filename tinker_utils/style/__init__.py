"""The look of everything drawn: one palette, one look of axes, the figure of one run and that of several."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.style.curves import (
        describe as describe,
        figure as figure,
        png as png,
        save_png as save_png,
        svg as svg,
    )
    from tinker_utils.style.overlays import describe_overlay as describe_overlay, overlay as overlay

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "curves": "describe figure png save_png svg",
        "overlays": "describe_overlay overlay",
    },
)
