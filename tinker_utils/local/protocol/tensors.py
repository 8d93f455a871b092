"""The binary messages of the protocol: training batches in, logprobs and samples out.

Message classes come from `tinker_public_pb2`, which the SDK ships. It is loaded as a file, because importing it as
`tinker.proto.tinker_public_pb2` would execute `tinker/__init__.py`: seconds, and a client's threads, in a server.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tinker_utils.errors import ServiceError
from tinker_utils.local.protocol.errors import RequestError

Array = npt.NDArray[Any]


def _load_messages() -> ModuleType:
    package = importlib.util.find_spec("tinker")
    if package is None or not package.submodule_search_locations:
        raise ServiceError("The embedded service needs the tinker SDK: install tinker==0.38.*.")
    file = Path(package.submodule_search_locations[0]) / "proto" / "tinker_public_pb2.py"
    spec = importlib.util.spec_from_file_location("_tinker_public_pb2", file)
    if spec is None or spec.loader is None or not file.exists():
        raise ServiceError("The installed tinker SDK has no proto/tinker_public_pb2.py: install tinker==0.38.*.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Generated code without types: what is read from it is checked field by field below.
messages: Any = _load_messages()

_DTYPES: dict[int, np.dtype[Any]] = {
    messages.DTYPE_FLOAT32: np.dtype("<f4"),
    messages.DTYPE_INT64: np.dtype("<i8"),
}


MAX_ROWS = 1 << 14
"""Rows of one request; the SDK sends at most 1,024."""

MAX_SPARSE_VALUES = 1 << 25
"""Values, zeros counted, of all sparse tensors of one request: a few bytes may stand for gigabytes."""


@dataclass(frozen=True)
class Datum:
    """One row of a batch.

    Attributes:
        tokens: int64 [T], the model's input.
        inputs: what the loss takes for each position, by name: [T], or [T, K] with K targets a position.
    """

    tokens: Array
    inputs: dict[str, Array]


@dataclass(frozen=True)
class LossRequest:
    """A decoded request to compute a loss, and its gradient unless `forward_only`."""

    data: tuple[Datum, ...]
    loss: str
    config: dict[str, float | str]
    forward_only: bool


@dataclass(frozen=True)
class SampledSequence:
    """One drawn sequence: int32 tokens [N], float32 logprobs [N], and whether a stop condition ended it."""

    tokens: Array
    logprobs: Array
    stopped: bool


def parse_forward_backward(body: bytes) -> Any:
    """Parse a request's body as a message, its content not yet checked; raise a `RequestError` if it is none."""
    request = messages.ForwardBackwardRequest()
    try:
        request.ParseFromString(body)
    except (DecodeError, RecursionError) as error:
        raise RequestError("The body is not a ForwardBackwardRequest in protobuf's format.", 422) from error
    return request


def decode_loss_request(request: Any) -> LossRequest:
    """Decode a parsed ForwardBackwardRequest; raise a `RequestError` that names the row and the field at fault."""
    if not 0 < len(request.data) <= MAX_ROWS:
        raise RequestError(f"The batch has {len(request.data)} rows, but must have 1 to {MAX_ROWS}.")
    if _sparse_values(request) > MAX_SPARSE_VALUES:
        raise RequestError(f"The sparse tensors of the batch expand to more than {MAX_SPARSE_VALUES} values.")
    config: dict[str, float | str] = dict(request.loss_fn_config)
    for key, value in request.loss_fn_config_v2.items():
        config[key] = value.text if value.WhichOneof("value") == "text" else value.number
    # Spans of provenance are not read: they say where tokens came from, which no served loss depends on.
    data = tuple(_decode_datum(datum, f"data[{index}]") for index, datum in enumerate(request.data))
    return LossRequest(data, request.loss_fn, config, request.forward_only)


def encode_outputs(logprobs: Sequence[Array], metrics: dict[str, float]) -> bytes:
    """Encode a ForwardBackwardOutput: for each datum float32 logprobs [T] or [T, K], and the metrics of all."""
    output = messages.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics.update(metrics)
    for start, end in _runs_of_equal_width(logprobs):
        rows = [np.ascontiguousarray(row, dtype="<f4") for row in logprobs[start:end]]
        record = output.loss_fn_outputs.add(num_datums=end - start)
        field = record.fields["logprobs"]
        field.dtype = messages.DTYPE_FLOAT32
        field.data = b"".join(row.tobytes() for row in rows)
        field.offsets = np.cumsum([0, *(row.nbytes for row in rows)], dtype="<i8").tobytes()
        field.trailing_shape.extend(rows[0].shape[1:])
    return bytes(output.SerializeToString())


def encode_samples(sequences: Sequence[SampledSequence], prompt_logprobs: Array | None) -> bytes:
    """Encode a SampleResponse; prompt logprobs are float32 [prompt length] with NaN where there are none."""
    response = messages.SampleResponse()
    for sequence in sequences:
        response.sequences.add(
            stop_reason=messages.STOP_REASON_STOP if sequence.stopped else messages.STOP_REASON_LENGTH,
            tokens=sequence.tokens.astype("<i4").tobytes(),
            logprobs=sequence.logprobs.astype("<f4").tobytes(),
        )
    if prompt_logprobs is not None:
        response.prompt_logprobs = prompt_logprobs.astype("<f4").tobytes()
    return bytes(response.SerializeToString())


def _sparse_values(request: Any) -> int:
    """Count the values that a batch's sparse tensors stand for; raise a `RequestError` if one has a negative size."""
    values = 0
    for index, datum in enumerate(request.data):
        for name, tensor in datum.loss_fn_inputs.items():
            if tensor.WhichOneof("encoding") != "sparse_csr":
                continue
            # A negative size would make room in the sum for what the other tensors stand for.
            if min(tensor.shape, default=0) < 0:
                where = f"data[{index}].loss_fn_inputs[{name[:40]!r}]"
                raise RequestError(f"{where} has a negative size in its shape {list(tensor.shape)}.")
            if len(tensor.shape) == 2:
                values += tensor.shape[0] * tensor.shape[1]
    return values


def _decode_datum(datum: Any, where: str) -> Datum:
    chunks = []
    for chunk in datum.model_input:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise RequestError(f"{where}.model_input has an image, audio or empty chunk: this service reads text only.")
        chunks.append(_buffer(chunk.encoded_text.tokens, np.dtype("<i4"), f"{where}.model_input"))
    tokens = np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, np.int64)
    if not tokens.size:
        raise RequestError(f"{where}.model_input has no tokens.")
    inputs = {
        str(name): _decode_tensor(tensor, len(tokens), f"{where}.loss_fn_inputs[{name[:40]!r}]")
        for name, tensor in datum.loss_fn_inputs.items()
    }
    return Datum(tokens, inputs)


def _decode_tensor(tensor: Any, length: int, where: str) -> Array:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise RequestError(f"{where} must be of dtype float32 or int64.")
    shape = tuple(tensor.shape)
    sparse = tensor.WhichOneof("encoding") == "sparse_csr"
    values = _buffer(tensor.sparse_csr.values if sparse else tensor.dense, dtype, where)
    if not shape and not sparse:
        shape = values.shape
    # At most one dimension beyond the positions, and no wider than a batch can sensibly carry: a hostile shape must
    # not make the server allocate.
    if not 1 <= len(shape) <= 2 or shape[0] != length or not all(0 < size <= 65_536 for size in shape[1:]):
        raise RequestError(f"{where} must have shape [{length}] or [{length}, K], not {list(shape)}.")
    if sparse:
        return _decode_csr(tensor.sparse_csr, values, shape, where)
    if values.size != np.prod(shape):
        raise RequestError(f"{where} has {values.size} values, which do not match its shape {list(shape)}.")
    return values.reshape(shape)


def _decode_csr(csr: Any, values: Array, shape: tuple[int, ...], where: str) -> Array:
    rows = _buffer(csr.crow_indices, np.dtype("<i8"), where)
    columns = _buffer(csr.col_indices, np.dtype("<i8"), where)
    if (
        len(shape) != 2
        or rows.size != shape[0] + 1
        or rows[0] != 0
        or rows[-1] != values.size
        or columns.size != values.size
        or (np.diff(rows) < 0).any()
        or (columns < 0).any()
        or (columns >= shape[1]).any()
    ):
        raise RequestError(f"{where} is not a valid sparse (CSR) tensor of shape {list(shape)}.")
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(rows)), columns] = values
    return dense


def _buffer(data: bytes, dtype: np.dtype[Any], where: str) -> Array:
    if len(data) % dtype.itemsize:
        raise RequestError(f"{where} has {len(data)} bytes, which is not a whole number of {dtype.name} values.")
    return np.frombuffer(data, dtype)


def _runs_of_equal_width(rows: Sequence[Array]) -> list[tuple[int, int]]:
    """Return ranges of consecutive rows whose shapes agree beyond the first dimension, as one record needs them."""
    starts = [index for index in range(len(rows)) if not index or rows[index].shape[1:] != rows[index - 1].shape[1:]]
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))
