"""The training service as this project uses it: one client for every address, and what its failures mean."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.service.client import Service as Service, ask_for_models as ask_for_models, connect as connect
    from tinker_utils.service.model import Model as Model
    from tinker_utils.service.sampling import Sample as Sample, sample_answers as sample_answers

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "client": "Service ask_for_models connect",
        "model": "Model",
        "sampling": "Sample sample_answers",
    },
)
