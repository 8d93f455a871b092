"""The protocol between the embedded server and its clients: requests, tensors, paths, LoRA settings, errors."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.local.protocol.errors import RequestError as RequestError
    from tinker_utils.local.protocol.lora import LoraSpec as LoraSpec, lora_user_metadata as lora_user_metadata
    from tinker_utils.local.protocol.paths import Reference as Reference
    from tinker_utils.local.protocol.queries import SampleQuery as SampleQuery
    from tinker_utils.local.protocol.tensors import Datum as Datum, LossRequest as LossRequest

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "errors": "RequestError",
        "lora": "LoraSpec lora_user_metadata",
        "paths": "Reference",
        "queries": "SampleQuery",
        "tensors": "Datum LossRequest",
    },
)
