"""Things that a notebook shows: the live view of a run, the form for its settings, the tokens of an example.

A view reads the run directory; it never imports the loop.
"""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.views.form import ConfigForm as ConfigForm, config_form as config_form
    from tinker_utils.views.html import show_picture as show_picture
    from tinker_utils.views.live import Dashboard as Dashboard, dashboard as dashboard
    from tinker_utils.views.tokens import MaskView as MaskView, alignment_table as alignment_table

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "form": "ConfigForm config_form",
        "html": "show_picture",
        "live": "Dashboard dashboard",
        "tokens": "MaskView alignment_table",
    },
)
