"""The export of a run: its best adapter, in the format that PEFT reads."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.export.adapter import export_adapter as export_adapter

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter": "export_adapter",
    },
)
