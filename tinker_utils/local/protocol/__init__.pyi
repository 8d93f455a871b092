from .errors import RequestError as RequestError
from .lora import LoraSpec as LoraSpec, lora_user_metadata as lora_user_metadata
from .paths import Reference as Reference
from .queries import SampleQuery as SampleQuery
from .tensors import Datum as Datum, LossRequest as LossRequest
