"""The JSON requests of the tinker SDK 0.38, validated strictly; shapes and defaults are the SDK's own.

The SDK has such classes too, but importing it takes seconds and starts what only a client needs. A field that this
service does not know is refused, not ignored: a newer SDK must not believe that it was understood.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, StringConstraints

from tinker_utils.local.protocol.errors import RequestError

MAX_JSON_BYTES = 8 * 1024 * 1024
"""JSON takes many times its size in memory while it is decoded; batches, which may be larger, come in protobuf."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=4096)]
Metadata = Annotated[dict[Text, Text], Field(max_length=64)]
Sequence = Annotated[int, Field(ge=1, lt=2**63)]
"""Position in a model's line of requests; 0 is the request that made the model."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Ttl = Annotated[int, Field(ge=-(2**53), le=2**53)]


class RequestBody(pydantic.BaseModel):
    """A request's body: exact types, no unknown fields."""

    # pydantic would keep the texts that it reads, thousands of them, for texts to come: ours are ids that come once.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=(), cache_strings="none")


class ClientConfigRequest(RequestBody):
    """Asks for the server's feature flags; what a newer SDK adds does not matter to the answer."""

    model_config = ConfigDict(extra="ignore")
    sdk_version: Text


class CreateSessionRequest(RequestBody):
    """Opens a session, and is answered with a warning if the SDK is another than 0.38; so it must be understood."""

    model_config = ConfigDict(extra="ignore")
    tags: Annotated[list[Text], Field(max_length=64)]
    user_metadata: Metadata | None = None
    sdk_version: Text
    project_id: Text | None = None
    display_name: Text | None = None
    type: Literal["create_session"] = "create_session"


class FinishSessionRequest(RequestBody):
    """Ends a session."""

    reason: dict[Text, Text]
    detail: Text | None = None


class SessionHeartbeatRequest(RequestBody):
    """Keeps a session alive."""

    session_id: Identifier
    type: Literal["session_heartbeat"] = "session_heartbeat"


class LoraSettings(RequestBody):
    """Rank, seed and the three groups of modules."""

    rank: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(RequestBody):
    """The optimizer of a model; only AdamW is served."""

    model_config = ConfigDict(extra="allow")
    type: Text = "adamw"


class CreateModelRequest(RequestBody):
    """Makes a new LoRA adapter."""

    session_id: Identifier
    model_seq_id: Annotated[int, Field(ge=0, lt=10**9)]
    base_model: Text
    user_metadata: Metadata | None = None
    lora_config: LoraSettings | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    type: Literal["create_model"] = "create_model"


class GetInfoRequest(RequestBody):
    """Asks what a model is."""

    model_id: Identifier
    type: Literal["get_info"] = "get_info"


class AdamParams(RequestBody):
    """One step of AdamW; the defaults are Tinker's."""

    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    beta1: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.95
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-12
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    grad_clip_norm: Finite = 0.0


class OptimStepRequest(RequestBody):
    """Takes an optimizer step."""

    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None
    model_id: Identifier
    seq_id: Sequence
    type: Literal["optim_step"] = "optim_step"


class SaveWeightsRequest(RequestBody):
    """Saves a training checkpoint."""

    model_id: Identifier
    path: Text
    seq_id: Sequence
    ttl_seconds: Ttl | None = None
    overwrite: bool = False
    user_metadata: Metadata | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSamplerRequest(RequestBody):
    """Saves weights to sample from: under a name, or for a new sampling session only."""

    model_id: Identifier
    path: Text | None = None
    sampling_session_seq_id: Count | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    seq_id: Sequence
    ttl_seconds: Ttl | None = None
    user_metadata: Metadata | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsExternalRequest(RequestBody):
    """Saves an adapter in PEFT's format."""

    model_id: Identifier
    path: Text
    seq_id: Sequence
    ttl_seconds: Ttl | None = None
    age_encryption_recipients: list[Text] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


class LoadWeightsRequest(RequestBody):
    """Loads a checkpoint into an existing model, or makes a new one of it."""

    model_id: Identifier | None = None
    seq_id: Sequence | None = None
    session_id: Identifier | None = None
    model_seq_id: Annotated[int, Field(ge=0, lt=10**9)] | None = None
    base_model: Text | None = None
    user_metadata: Metadata | None = None
    path: Text
    optimizer: bool
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: Text | None = None
    type: Literal["load_weights"] = "load_weights"


class CreateSamplingSessionRequest(RequestBody):
    """Opens a sampling session on a base model or on saved weights."""

    session_id: Identifier
    sampling_session_seq_id: Count
    base_model: Text | None = None
    model_path: Text | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSessionRequest(RequestBody):
    """Asks for a further client's number in a sampling session."""

    sampling_session_id: Identifier
    type: Literal["join_sampling_session"] = "join_sampling_session"


class Chunk(RequestBody):
    """A part of a prompt; only text is served, so that other kinds fail by their `type`."""

    model_config = ConfigDict(extra="allow")
    type: Text = "encoded_text"
    tokens: list[int] = []


class ModelInput(RequestBody):
    """A prompt."""

    chunks: list[Chunk]


class SamplingParams(RequestBody):
    """Settings for drawing tokens."""

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=64)] | Annotated[list[int], Field(max_length=256)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class SampleRequest(RequestBody):
    """Draws sequences after a prompt."""

    num_samples: Annotated[int, Field(ge=1, le=1024)] = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: Text | None = None
    model_path: Text | None = None
    sampling_session_id: Identifier | None = None
    seq_id: Count | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


class FutureRetrieveRequest(RequestBody):
    """Asks for a result, and waits for it."""

    request_id: Identifier
    allow_metadata_only: bool = False


class WeightsInfoRequest(RequestBody):
    """Asks what a checkpoint was trained from."""

    tinker_path: Text


class SetTtlRequest(RequestBody):
    """Changes when a checkpoint expires."""

    ttl_seconds: Ttl | None = None


M = TypeVar("M", bound=RequestBody)


def decode(message: type[M], body: bytes) -> M:
    """Decode the request in a JSON body; raise a `RequestError` (422, 413) that names the first field at fault."""
    if len(body) > MAX_JSON_BYTES:
        raise RequestError(f"The body is larger than the {MAX_JSON_BYTES} bytes of JSON that this service takes.", 413)
    try:
        return message.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise RequestError(f"{message.__name__} is not valid at {where[:200]}: {first['msg'][:300]}.", 422) from None
