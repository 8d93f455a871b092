"""Finds out what a server does of what a run needs, before it is needed: on a fresh model of rank 1, for a few tokens.

What is asked is in the order of `_Trial`'s methods. Gradients are compared without being seen: a step of Adam without
moments, whose `eps` is far larger than the gradient, moves the weights along the gradient and in proportion to it, and
so the loss. Where the server gives the gradient's norm, that is taken instead.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.files import MARK, check_own, read_bounded
from tinker_utils.basics.redaction import without_home
from tinker_utils.basics.threads import within
from tinker_utils.batching import Batch, Example
from tinker_utils.config.address import named_address
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import RunDirectoryError, ServiceError
from tinker_utils.run.directory import write_atomically
from tinker_utils.run.state import ServerProbe
from tinker_utils.service.address import is_hosted
from tinker_utils.service.client import Service, open_connection
from tinker_utils.service.failures import service_error, service_errors
from tinker_utils.service.model import Model, Submitted, datums, figures_of, logprobs_of

MAX_TOKENS = 1200
"""Tokens that a probe sends at most."""
_KEPT_SECONDS = 24 * 3600
_FILE = f"{MARK}servers.json"
_MAX_FILE = 1 << 20
_ANSWER_SECONDS = 900  # an engine that compiles for each shape may take minutes
# Rows of unequal length, of tokens that every vocabulary has.
_SHORT, _LONG = [11, 12, 13, 14, 15, 16], [21, 32, 23, 34, 25, 36, 27, 38, 29, 40, 31, 42, 33, 44]
_BOTH = [_SHORT, _LONG]
_RATE = 3e-3
_EPS = 1e3  # far larger than an element of a gradient
_HEAVY = 100.0
# Two measurements are the same within the first share, and another than each other beyond the second.
_SAME, _OTHER = 0.1, 0.2
_TINY = 1e-6
# The words of a refusal, in a message of the SDK's.
_DETAIL = re.compile(r"""'detail': ["'](.+?)["']\}""")

Row = list[int]
T = TypeVar("T")


def known_server(
    config: TrainingConfig, directory: Path, service: Service | None = None, ask: bool | None = None
) -> ServerProbe | None:
    """Return what is known of the server that a run is to train on, and ask it where nothing is.

    Args:
        config: the run's settings.
        directory: where what was found is kept for a day.
        service: an open connection to the server, if there is one.
        ask: True asks anew; False asks nothing. None asks any server but the embedded and the hosted one, unless
            TINKER_UTILS_PROBE is 0.

    Raises:
        ServiceError: the server cannot be reached, or cannot train.
    """
    if config.service == "local":
        return None
    url = named_address(config)
    name = without_home(f"{url or config.service} {config.model}")
    kept = _kept(directory)
    if name in kept and ask is not True:
        return kept[name]
    if ask is None:
        ask = url is not None and not is_hosted(url) and os.environ.get("TINKER_UTILS_PROBE") != "0"
    if not ask:
        return None
    with contextlib.ExitStack() as stack:
        connection = service or stack.enter_context(open_connection(config, directory))
        found = probe_server(connection, config)
    with contextlib.suppress(RunDirectoryError, OSError):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / _FILE, msgspec.json.encode({**kept, name: found}))
    return found


def _kept(directory: Path) -> dict[str, ServerProbe]:
    """Return what was found within a day, by address and model."""
    path = directory / _FILE
    try:
        check_own(path)
        found = msgspec.json.decode(read_bounded(path, _MAX_FILE), type=dict[str, ServerProbe])
    except (OSError, msgspec.MsgspecError):
        return {}
    return {name: probe for name, probe in found.items() if 0 <= time.time() - probe.at < _KEPT_SECONDS}


def probe_server(service: Service, config: TrainingConfig) -> ServerProbe:
    """Ask a server for everything that a run may, on a model of its own.

    Raises:
        ServiceError: it cannot train, evaluate or save, which a run cannot do without.
    """
    small = replace(config, lora=replace(config.lora, rank=1, dropout=0.0))
    with service_errors("trying what a run needs"):
        trial = _Trial(service, small)
        trial.train()
    for ask in (trial.restore, trial.export, trial.delete, trial.sample, trial.compare_gradients):
        ask()
    return trial.found


def about_server(found: ServerProbe, config: TrainingConfig) -> Iterator[str]:
    """Yield what a server that was probed cannot do, as it concerns a run."""
    said = {name: f" ({_in_short(refusal)})" for name, refusal in found.refusals.items()}
    sentences = {
        "restores": "This server cannot restore a run: it can be trained on, not resumed{}.",
        "restores_optimizer": "This server restores a run's weights and not its optimizer: a resumed run goes another "
        "way, and training.resume_warmup_steps begins it with small steps{}.",
        "samples": "This server cannot sample: no answers can be compared{}.",
        "samples_trained": "This server samples from other weights than those it is given (the base model's, by their "
        "log-probabilities): what it writes is not what was trained.",
        "unharmed": "A model that was sampled from on this server does not train on as it was{}.",
        "exports": "This server gives no adapter: a run ends with a checkpoint on it{}.",
        "deletes": "This server deletes no checkpoints: those that a run needs no more stay on it{}.",
        "sums_weights": "This server normalizes a batch's weights by itself: its gradient is not the mean over the "
        "batch's completion tokens, and long answers and short ones may count alike.",
        "splits": "A batch has another gradient on this server than its parts: what is learned depends on how the "
        "server splits a batch.",
    }
    if config.grad_clip_norm:
        sentences["clips"] = "This server does not clip gradients: training.grad_clip_norm has no effect."
    for name, sentence in sentences.items():
        if getattr(found, name) is False:
            yield sentence.format(said.get(name, ""))
    if config.samples_at_evaluation and not found.can_sample_in_training:
        yield "The run asks this server for no samples, whatever training.samples_at_evaluation says."


def _in_short(refusal: str) -> str:
    """Return what a server said, without what the SDK and this project say around it."""
    detail = _DETAIL.search(refusal)
    return (detail[1].split(". ")[0] if detail else refusal.split("; ")[0]).rstrip(".")


class _Trial:
    """One probe: what was found so far, and the model that it is found out with."""

    def __init__(self, service: Service, config: TrainingConfig) -> None:
        self._service = service
        self._config = config
        self.found = ServerProbe(at=time.time())
        self._model = self._new_model()

    def _new_model(self) -> Model:
        seconds = min(_ANSWER_SECONDS, self._config.service_timeout_s or _ANSWER_SECONDS)
        return within(seconds, lambda: self._service.new_model(self._config), "the model")

    def train(self) -> None:
        """Train, evaluate and save, which a run cannot do without."""
        self._untrained = self._logprobs(self._model)
        for _ in range(3):
            self._step(self._model, [[_SHORT]], _RATE)
        self._checkpoint = _answer(self._model.submit_save("probe"))
        self._saved = self._logprobs(self._model)
        self._step(self._model, [[_LONG]], _RATE)
        self._after = self._logprobs(self._model)
        if not _distance(self._after, self._untrained) > _TINY:
            raise ServiceError("the server takes steps, and they do not change the model; look at its log.")

    def restore(self) -> None:
        """Restore the checkpoint, and take the step that was taken behind it."""
        with self._asking("restores"):
            restored = self._service.restored_model(self._checkpoint, self._config)
            apart = _distance(self._logprobs(restored), self._saved)
            self.found.restores = _same(apart, 0.0, _distance(self._saved, self._untrained))
        if self.found.restores:
            with self._asking("restores_optimizer"):
                self._step(restored, [[_LONG]], _RATE)
                apart = _distance(self._logprobs(restored), self._after)
                self.found.restores_optimizer = _same(apart, 0.0, _distance(self._after, self._saved))

    def export(self) -> None:
        """Fetch the adapter's files."""
        with self._asking("exports"), tempfile.TemporaryDirectory(prefix=MARK) as directory:
            self._service.download_adapter(self._checkpoint, Path(directory) / "adapter")
            self.found.exports = True

    def delete(self) -> None:
        """Remove the checkpoint, and look whether it is gone."""
        with self._asking("deletes"):
            self._service.delete_checkpoint(self._checkpoint).result(_ANSWER_SECONDS)
            self.found.deletes = self._checkpoint not in dict(self._service.checkpoints_of(self._model.run_id))

    def compare_gradients(self) -> None:
        """Look what the weights of a row, the parts of a batch and a bound do to a step of a fresh model."""
        with self._asking("sums_weights"):
            self._model = self._new_model()
            self._compare_gradients()

    def _compare_gradients(self) -> None:
        whole, parts = [_BOTH], [[_SHORT], [_LONG]]
        # Until a step along the gradient can be seen, and is not so long that the gradient is another one behind it.
        wanted, rate, norm = 0.01 * abs(float(self._untrained.sum())), 1e-5, None
        for _ in range(6):
            fall, norm = self._pull(whole, rate, _HEAVY)
            if not 0 <= fall < wanted / 2:
                break
            rate *= min(1000.0, wanted / max(fall, _TINY))

        def gauge(parts: list[list[Row]], weight: float) -> float:
            return self._pull(parts, rate, weight)[0] if norm is None else self._pull(parts, 0.0, weight)[1] or 0.0

        heavy, light = gauge(whole, _HEAVY), gauge(whole, 1.0)
        # A step whose length depends on nothing says nothing.
        if norm is None and light > heavy / 3 and self._pull(whole, rate, eps=_EPS * 1e3)[0] > light / 3:
            return
        self.found.sums_weights = True if light < heavy / 10 else False if light > heavy / 3 else None
        weight = 1.0 if self.found.sums_weights is False else _HEAVY
        before, split, after = gauge(whole, weight), gauge(parts, weight), gauge(whole, weight)
        # A young adapter's gradient grows with each step; where it more than triples, or is noise, nobody knows.
        if 0 < before < 3 * after < 9 * before:
            self.found.splits = _same(split, math.sqrt(before * after))
        free, clipped = self._pull(whole, rate, weight)[0], self._pull(whole, rate, weight, clip=_TINY)[0]
        self.found.clips = abs(clipped) < abs(free) / 10

    def sample(self) -> None:
        """Have a sampler of these weights score a row when the model has been trained on, and train on."""
        with self._asking("samples"):
            sampled, given = self._after, self._after[: len(_SHORT) - 1]
            sampler = self._model.client.save_weights_and_get_sampling_client().result(_ANSWER_SECONDS)
            self._step(self._model, [[_SHORT]], _RATE)
            self._after = self._logprobs(self._model)
            self.found.tokens += len(_SHORT)
            # The first token has no log-probability; SkyRL leaves it out.
            scored = sampler.compute_logprobs(_input(_SHORT)).result(_ANSWER_SECONDS)[-len(given) :]
            self.found.samples = True
            own, base = (
                _distance(np.array(scored, np.float64), each[: len(given)]) for each in (given, self._untrained)
            )
            self.found.samples_trained = own < base

        if self.found.samples:
            with self._asking("unharmed"):
                apart = _distance(self._logprobs(self._model), self._after)
                self._step(self._model, [[_SHORT]], _RATE)
                self.found.unharmed = _same(apart, 0.0, _distance(self._after, sampled))

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Note what is refused inside the block, and that this is a no."""
        try:
            yield
        except Exception as error:
            setattr(self.found, name, False)
            said = error if isinstance(error, ServiceError) else service_error("the probe", error)
            self.found.refusals[name] = str(said)

    def _logprobs(self, model: Model) -> NDArray[np.float64]:
        """Return the log-probabilities of the tokens of both rows."""
        return np.concatenate(logprobs_of(self._pass(model.client.forward, _BOTH, 1.0).result(_ANSWER_SECONDS)))

    def _pull(
        self, parts: list[list[Row]], rate: float, weight: float = 1.0, clip: float = 0.0, eps: float = _EPS
    ) -> tuple[float, float | None]:
        """Step along a gradient; returns by how many nats the loss falls, and the norm where the server gives it."""
        before = self._logprobs(self._model) if rate else 0.0
        options = {"beta1": 0.0, "beta2": 0.0, "eps": eps, "grad_clip_norm": clip}
        norm = self._step(self._model, parts, rate, weight, **options)
        return float(np.sum(self._logprobs(self._model) - before)) if rate else 0.0, norm

    def _step(
        self, model: Model, parts: list[list[Row]], rate: float, weight: float = 1.0, **options: float
    ) -> float | None:
        """Take a step on rows, each part in a request of its own; returns the gradient's norm where it is given."""
        import tinker

        passes = [self._pass(model.client.forward_backward, rows, weight) for rows in parts]
        stepped = model.client.optim_step(tinker.AdamParams(learning_rate=rate, **options)).future()
        for each in passes:
            each.result(_ANSWER_SECONDS)
        return figures_of(stepped.result(_ANSWER_SECONDS)).get("grad_norm")

    def _pass(self, call: Any, rows: list[Row], weight: float) -> Future[Any]:
        self.found.tokens += sum(map(len, rows))
        batch = Batch(tuple(Example(np.array(row, np.int32), np.ones(len(row) - 1, np.float32)) for row in rows))
        weights = [weight * example.weights for example in batch.data]
        future: Future[Any] = call(datums(batch, weights), "cross_entropy").future()
        return future


def _input(tokens: Row) -> Any:
    import tinker

    return tinker.ModelInput.from_ints(tokens)


def _answer(submitted: Submitted[T]) -> T:
    for future in submitted.futures:
        future.result(_ANSWER_SECONDS)
    return submitted.result()


def _distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(one - other))


def _same(measured: float, expected: float, scale: float | None = None) -> bool | None:
    """Return whether two measurements are the same, by their distance in shares of a scale; None is not known."""
    share = abs(measured - expected) / max(abs(expected if scale is None else scale), _TINY)
    return True if share < _SAME else None if share < _OTHER else False
