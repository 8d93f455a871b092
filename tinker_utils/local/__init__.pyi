from .launcher import (
    WEIGHTED_LOGPROBS as WEIGHTED_LOGPROBS,
    LocalService as LocalService,
    lora_user_metadata as lora_user_metadata,
    start_local_service as start_local_service,
)
