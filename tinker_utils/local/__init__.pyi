from .launcher import (
    LocalService as LocalService,
    lora_user_metadata as lora_user_metadata,
    start_local_service as start_local_service,
)
