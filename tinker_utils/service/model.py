"""A model in training on a service: batches → requests, and answers → losses.

Nothing here waits. A request is submitted, and its futures say when its `result` can be read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.threads import in_background
from tinker_utils.batching import Batch
from tinker_utils.errors import ResultLostError, ServiceError
from tinker_utils.loss import negative_log_likelihood
from tinker_utils.service.older_servers import METRIC_NAMES

if TYPE_CHECKING:
    import tinker

# The SDK gives up samples when none came for two hours; sooner than this, it was misled.
_STUCK_SECONDS = 3600.0
T = TypeVar("T")
_CROSS_ENTROPY: Literal["cross_entropy"] = "cross_entropy"


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, as a pass over it gave it.

    Attributes:
        totals: negative log-likelihood of each example over its completion tokens, in nats; None where the service
            returned no logprobs.
        total: their sum, or the service's own sum where there are no logprobs.
        reported: the service's own `loss:sum` in the same unit as `total`, None where it gives none.
        of_text: as `total`, of those completion tokens that are text; None where they were not told apart.
    """

    totals: tuple[float, ...] | None
    total: float
    reported: float | None
    of_text: float | None = None


@dataclass(frozen=True)
class Submitted(Generic[T]):
    """A request in flight.

    Attributes:
        futures: what has to be waited for before `result` answers at once.
        result: reads what the request came to.
    """

    futures: tuple[Future[Any], ...]
    result: Callable[[], T]


class Model:
    """A model in training on a service. Requests run in the order of submission; none of these calls waits."""

    def __init__(self, client: tinker.TrainingClient) -> None:
        self._client = client

    @property
    def client(self) -> tinker.TrainingClient:
        """Return the SDK's own client, for what a run does not ask of it."""
        return self._client

    @property
    def run_id(self) -> str:
        """Return what the service calls this model; its checkpoints are `tinker://RUN_ID/…`."""
        return str(self._client.model_id)

    def submit_step(
        self, batch: Batch, learning_rate: float, weight_decay: float, grad_clip_norm: float
    ) -> Submitted[tuple[BatchLoss, dict[str, float]]]:
        """Submit a step on the mean loss over the batch's completion tokens; nothing is sent of an empty batch.

        Its result is the batch's loss, and the optimizer's own figures where the service gives them.
        """
        if not batch.data:
            return Submitted((), lambda: (BatchLoss((), 0.0, None), {}))
        import tinker

        passed = self._client.forward_backward(datums(batch, batch.normalized_weights()), _CROSS_ENTROPY).future()
        stepped = self._client.optim_step(
            tinker.AdamParams(learning_rate=learning_rate, weight_decay=weight_decay, grad_clip_norm=grad_clip_norm)
        ).future()
        return Submitted(
            (passed, stepped),
            lambda: (_batch_loss(passed.result(), batch, batch.completion_tokens), figures_of(stepped.result())),
        )

    def submit_evaluation(
        self, batches: Sequence[Batch], special_ids: NDArray[np.int64] | None = None
    ) -> Submitted[list[BatchLoss]]:
        """Submit forward passes at the weights that the requests submitted so far lead to, without gradients.

        Its result is the loss of each batch; with `special_ids`, also of those completion tokens that are none of them.
        """
        futures = self._forward(batches)
        return Submitted(
            futures,
            lambda: [_batch_loss(f.result(), batch, 1, special_ids) for f, batch in zip(futures, batches, strict=True)],
        )

    def submit_logprobs(self, batches: Sequence[Batch]) -> Submitted[list[NDArray[np.float64]]]:
        """Do as `submit_evaluation`, for the log-probability of each target: of each example, float64, shape [n].

        Those of targets without a weight may be missing: they are then 0.
        """
        futures = self._forward(batches)
        return Submitted(futures, lambda: [row for future in futures for row in logprobs_of(future.result())])

    def _forward(self, batches: Sequence[Batch]) -> tuple[Future[Any], ...]:
        return tuple(
            self._client.forward(datums(batch, [example.weights for example in batch.data]), _CROSS_ENTROPY).future()
            for batch in batches
        )

    def submit_save(self, name: str) -> Submitted[str]:
        """Submit a save of weights and optimizer as the requests so far leave them; the checkpoint does not expire.

        Its result is the checkpoint's `tinker://` path. A checkpoint of the same name is replaced: it is what an
        attempt that was cut off left behind.
        """
        saved = self._client.save_state(name, overwrite=True).future()
        return Submitted((saved,), lambda: str(saved.result().path))

    def submit_samples(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int] = ()
    ) -> Submitted[list[list[int]]]:
        """Submit greedy completions at the weights that the requests so far lead to: token ids of each, in the end."""
        opening = self._client.save_weights_and_get_sampling_client()
        # The SDK hands out a sampling client only once its weights are there: a thread waits for that.
        samples = in_background(
            lambda: complete(opening.result(), prompts, max_tokens=max_tokens, stop=stop), "samples"
        )
        return Submitted((samples,), samples.result)


def complete(
    client: tinker.SamplingClient,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: Sequence[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Return the token ids that a client writes after each prompt, with the token of `stop` that it ended with."""
    import tinker

    # A server need not stop by itself where the model's turn ends; an empty list would say that none may.
    ends = list(stop) or None
    params = tinker.SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=ends)
    began = time.monotonic()
    try:
        return _complete(client, prompts, params)
    except tinker.APIConnectionError:
        if time.monotonic() - began > _STUCK_SECONDS:
            raise
        # To the SDK, a wall clock that was set ahead looks as if nothing had come for hours.
        return _complete(client, prompts, params)


def _complete(
    client: tinker.SamplingClient, prompts: Sequence[Sequence[int]], params: tinker.SamplingParams
) -> list[list[int]]:
    import tinker

    futures = [client.sample(tinker.ModelInput.from_ints(list(prompt)), 1, params).future() for prompt in prompts]
    wait(futures)  # all of them: while one is in flight, the SDK does not see that there is progress again
    return [list(future.result().sequences[0].tokens) for future in futures]


def datums(batch: Batch, weights: Sequence[NDArray[np.float32]]) -> list[tinker.Datum]:
    """Return a batch as the SDK takes it, with the weights of each example's targets."""
    import tinker

    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(example.input_tokens.tolist()),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(example.target_tokens.astype(np.int64)),
                "weights": tinker.TensorData.from_numpy(weight),
            },
        )
        for example, weight in zip(batch.data, weights, strict=True)
    ]


def logprobs_of(output: Any) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of a response, float64, one array a row."""
    return [np.asarray(row["logprobs"].data, np.float64) for row in output.loss_fn_outputs]


def _batch_loss(output: Any, batch: Batch, scale: float, special_ids: NDArray[np.int64] | None = None) -> BatchLoss:
    """Return a response as a loss; `scale` turns the service's own sum, taken with the weights sent, into nats."""
    try:
        sums, totals = output.metrics or {}, _totals(output.loss_fn_outputs, batch)
        of_text = None if special_ids is None else _totals(output.loss_fn_outputs, batch, special_ids)
        reported = float(sums["loss:sum"]) * scale if sums.get("loss:sum") is not None else None
    except (ValueError, TypeError, AttributeError) as error:
        raise ResultLostError(
            f"reading a loss: the service's answer cannot be read ({error}); look at the service's status and try "
            "again; a run resumes from its latest checkpoint."
        ) from error
    if totals is not None:
        return BatchLoss(totals, float(np.sum(totals)), reported, None if of_text is None else float(np.sum(of_text)))
    if reported is None:
        raise ServiceError(
            "reading a loss: the service returned neither logprobs nor loss:sum, so there is no loss to train on; "
            "use a server that returns one of them."
        )
    return BatchLoss(None, reported, reported)


def _totals(
    outputs: Sequence[Mapping[str, Any]], batch: Batch, but: NDArray[np.int64] | None = None
) -> tuple[float, ...] | None:
    """Return each example's negative log-likelihood, but for some tokens; None where the service gave no logprobs."""
    logprobs = [each.get("logprobs") for each in outputs]
    if len(logprobs) != len(batch.data) or any(each is None for each in logprobs):
        return None
    return tuple(
        negative_log_likelihood(
            each.to_numpy(), example.weights if but is None else example.weights * ~np.isin(example.target_tokens, but)
        )
        for each, example in zip(logprobs, batch.data, strict=True)
        if each is not None
    )


def figures_of(output: Any) -> dict[str, float]:
    """Return the optimizer's own figures, by the names that metrics.jsonl has for them."""
    figures = {METRIC_NAMES.get(name, name): value for name, value in (output.metrics or {}).items()}
    # The protocol's JSON holds no NaN: the embedded service says in this way that the norm is none.
    if figures.pop("grad_norm_nonfinite", 0.0):
        figures["grad_norm"] = math.nan
    return figures
