"""Configuration → an open connection to a training service, and the few calls that a run makes on it.

All of it goes through the `tinker` SDK, whatever the address: the hosted service, a self-hosted server, or the
embedded one, which `connect` starts on this machine and `Service.close` ends. `tinker` and `transformers` take seconds
to import, so they are imported where they are first used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.basics.closing import Closing
from tinker_utils.basics.threads import in_background, within
from tinker_utils.batching import Example, in_batches
from tinker_utils.config.address import named_address
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import CheckpointGoneError, ServiceError
from tinker_utils.local.launcher import WEIGHTED_LOGPROBS, LocalService, lora_user_metadata, start_local_service
from tinker_utils.plan.cautions import about_address
from tinker_utils.run.state import model_of
from tinker_utils.service.address import client_options, is_hosted, reach_loopback_directly
from tinker_utils.service.compat import keep_keys_home, observe_queue, observe_responses
from tinker_utils.service.download import check_target, fetch_adapter, fetch_archive
from tinker_utils.service.failures import service_error, service_errors
from tinker_utils.service.model import Model, complete
from tinker_utils.service.offered import Offer, offers
from tinker_utils.service.older_servers import (
    archive_url,
    created_and_loaded,
    lacks_call,
    sampler_path,
    wants_a_model,
)
from tinker_utils.service.watch import ServiceWatch, why_not_at_work

if TYPE_CHECKING:
    import tinker

_PROBE_SECONDS = 4
_ANSWER_SECONDS = 30
# The SDK tries for minutes where it is refused a session, and far longer where nothing is answered.
_SESSION_SECONDS = 120
_CLOSE_SECONDS = 5
_EXPORT_TTL_SECONDS = 3600
_ASKING = "asking the service for its models"


class Service(Closing):
    """An open connection. Its calls wait for the answer; those that train go through a `Model`."""

    def __init__(
        self,
        open_client: Callable[[], tinker.ServiceClient],
        rest: tinker.RestClient,
        base_model: str,
        address: str,
        local: LocalService | None = None,
    ) -> None:
        self._open = open_client
        self.watch = ServiceWatch(address)
        self._client = self._watched_client()
        self._rest = rest
        self._local = local
        self._address = address
        self.base_model = base_model
        self.store: Path | None = None
        """Where the embedded server of this connection keeps checkpoints."""
        self._is_closed = False
        self._again: Callable[[], Service] | None = None

    @property
    def embedded_pid(self) -> int | None:
        """Return the process of the embedded server that was started for this connection."""
        return self._local.process.pid if self._local else None

    @service_errors("creating the model")
    def new_model(self, config: TrainingConfig) -> Model:
        """Make a base model with a fresh adapter; alpha, dropout and modules are metadata, which `local` honours."""
        lora = config.lora
        future = self._client.create_lora_training_client(
            self.base_model,
            rank=lora.rank,
            seed=config.seed,
            train_mlp=lora.train_mlp,
            train_attn=lora.train_attn,
            train_unembed=lora.train_unembed,
            user_metadata=_metadata(config),
        )
        return self._watched(future.result())

    def restored_model(self, checkpoint: str, config: TrainingConfig) -> Model:
        """Return the model of a checkpoint, with its optimizer."""
        with service_errors(f"loading the checkpoint {checkpoint}"):
            try:
                return self._watched(self._loaded(checkpoint, config))
            except Exception as error:
                damaged = isinstance(service_error("", error), CheckpointGoneError)
                # If this question is not answered either, that is raised: it is no no.
                if damaged or checkpoint in dict(self.checkpoints_of(model_of(checkpoint))):
                    raise
                raise CheckpointGoneError(f"The checkpoint {checkpoint} expired or was deleted.") from error

    def _loaded(self, checkpoint: str, config: TrainingConfig | None = None) -> tinker.TrainingClient:
        """Return the model of a checkpoint: with its optimizer to go on with a run, weights alone without one."""
        client, metadata = self._client, _metadata(config) if config else None
        try:
            if config is None:
                return client.create_training_client_from_state(checkpoint).result()
            return client.create_training_client_from_state_with_optimizer(checkpoint, user_metadata=metadata).result()
        except Exception as error:
            if not wants_a_model(error):
                raise
        options = {"user_metadata": metadata, "seed": config and config.seed}
        return created_and_loaded(client, self._rest, checkpoint, with_optimizer=config is not None, **options)

    def _watched_client(self) -> tinker.ServiceClient:
        client = self._open()
        observe_responses(client, self.watch.responded)
        return client

    def _watched(self, client: tinker.TrainingClient) -> Model:
        observe_queue(client, self.watch)
        return Model(client)

    def checkpoints_of(self, run_id: str) -> list[tuple[str, bool]]:
        """Return the path of each checkpoint that a model has saved and that is left, and whether it will expire.

        Args:
            run_id: what the service calls the model; `Model.run_id`.
        """
        try:
            listed = self._rest.list_checkpoints(run_id).result().checkpoints
        except Exception as error:
            if getattr(error, "status_code", None) == 404:
                return []
            raise
        return [(each.tinker_path, each.expires_at is not None) for each in listed]

    def wait_until_reachable(self) -> None:
        """Block until the service answers, and not only to say that it cannot."""
        while why_not_at_work(self._address, _PROBE_SECONDS):
            time.sleep(1.0)

    def renew(self) -> None:
        """Begin a new session: the service may have ended the old one."""
        old, self._client = self._client, self._watched_client()
        old.close("interrupted")

    def check_alive(self) -> None:
        """Raise if the embedded server has ended: the SDK would go on asking for its answer.

        Raises:
            ServiceError: it has; the message ends with what it said last.
        """
        if self._local is not None:
            self._local.check_alive()

    @service_errors(_ASKING)
    def served_models(self) -> dict[str, Offer]:
        """Ask as `ask_for_models` does, over this connection."""
        self.check_alive()
        return _served_models(lambda: self._rest)

    @service_errors("sampling")
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        checkpoint: str | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Return what a checkpoint, or the base model if there is none, writes after each prompt.

        Args:
            prompts: token ids, one list a prompt.
            checkpoint: the `tinker://` path of a saved state or of sampler weights.
            stop: tokens that end a completion; `Renderer.stops`, which not every server knows.

        Returns:
            Token ids of each completion, the end-of-turn token included where it was reached.
        """
        return complete(self._sampling_client(checkpoint), prompts, max_tokens, stop, temperature, seed)

    def _sampling_client(self, checkpoint: str | None) -> tinker.SamplingClient:
        if checkpoint is None:
            return self._client.create_sampling_client(base_model=self.base_model).result()
        if "/sampler_weights/" in checkpoint:
            return self._client.create_sampling_client(model_path=checkpoint).result()
        trained = self._loaded(checkpoint)
        return trained.save_weights_and_get_sampling_client().result()

    def logprobs(
        self, examples: Sequence[Example], config: TrainingConfig, checkpoint: str | None = None
    ) -> list[NDArray[np.float64]]:
        """Return the log-probability of each target that has a weight, as an evaluation of a checkpoint sees it.

        Args:
            examples: the rows.
            config: the run's settings.
            checkpoint: a `tinker://` path; the base model if it is None.

        Returns:
            Of each example, float64, shape [n].
        """
        with service_errors(f"evaluating {checkpoint or 'the base model'}"):
            model = Model(self._loaded(checkpoint)) if checkpoint else self.new_model(config)
            found = model.submit_logprobs(list(in_batches(examples, config.batch_size))).result()
        if [len(row) for row in found] != [example.token_count for example in examples]:
            raise ServiceError("reading log-probabilities: the service does not give one for each token of each row.")
        return found

    def check_checkpoint(self, checkpoint: str) -> None:
        """Ask the service about a checkpoint that is needed; raise a CheckpointGoneError if it is damaged or gone."""
        with service_errors("the best checkpoint"):
            self._rest.get_weights_info_by_tinker_path(checkpoint).result(timeout=_ANSWER_SECONDS)

    def delete_checkpoint(self, checkpoint: str) -> Future[None]:
        """Ask for a checkpoint's removal; the future raises if the service refuses it."""
        return self._rest.delete_checkpoint_from_tinker_path(checkpoint).future()

    def expire_checkpoint(self, checkpoint: str, ttl_seconds: int | None) -> Future[None]:
        """Ask that a checkpoint expires so many seconds from now, or never; the future raises if that is refused."""
        return self._rest.set_checkpoint_ttl_from_tinker_path(checkpoint, ttl_seconds).future()

    def download_adapter(self, checkpoint: str, directory: Path) -> list[Path]:
        """Write a checkpoint's adapter in PEFT's format, through the service's external weights.

        Args:
            directory: becomes the adapter, as a whole and at the end; it may hold an earlier one and nothing else.

        Returns:
            The files written.

        Raises:
            ServiceError: the service refuses, or what it gives is not whole, or no adapter.
            RunDirectoryError: the directory holds something else, or cannot be written.
        """
        with service_errors(f"exporting {checkpoint}"):
            check_target(directory)
            # What is saved is needed for the download only; should the process end in it, it expires by itself.
            try:
                saved = self._loaded(checkpoint).save_weights_external("adapter", _EXPORT_TTL_SECONDS).result().path
                archived = False
            except Exception as error:
                if not lacks_call(error):
                    raise
                trained = self._loaded(checkpoint)
                saved = sampler_path(trained.save_weights_for_sampler("adapter", _EXPORT_TTL_SECONDS).result().path)
                archived = True
            try:
                if archived:
                    return fetch_archive(archive_url(self._rest, saved), self._address, directory)
                urls = self._rest.get_external_weights_urls(saved).result().urls
                return fetch_adapter(urls, self._address, directory)
            finally:
                with contextlib.suppress(Exception):
                    self.delete_checkpoint(saved).result(_CLOSE_SECONDS)

    def reopen(self) -> None:
        """Connect again where `close` ended the session, so that whoever holds this service can go on with it.

        Raises:
            ServiceError: as `connect`.
        """
        if self._is_closed and self._again is not None:
            vars(self).update(vars(self._again()))

    def close(self) -> None:
        """End the session, and the embedded server if it was started for it. Safe to call twice."""
        self._is_closed = True
        with contextlib.suppress(Exception):
            # A service that does not answer must not hold up the end of a run: the SDK waits for a session that is
            # being made before it closes, and that may never be.
            in_background(lambda: self._client.close("success").result(), "closing").result(_CLOSE_SECONDS)
        if self._local is not None:
            self._local.close()


def connect(config: TrainingConfig, store: Path | str) -> Service:
    """Open the service that `config.service` names, with a warning where the way to it can be read.

    Args:
        config: says which service and which base model.
        store: where the embedded server keeps its checkpoints, if it is the one.

    Raises:
        ServiceError: there is no key, the key is refused, or the server cannot be reached or started.
    """
    for caution in about_address(config):
        warnings.warn(caution, stacklevel=2)
    return open_connection(config, store)


def open_connection(config: TrainingConfig, store: Path | str) -> Service:
    """Do as `connect`, for a run, which has its own place for warnings."""
    reach_loopback_directly(named_address(config))
    options: dict[str, Any]
    with service_errors(f"connecting to {config.service}"):
        if config.service == "local":
            model = config.resolved().model
            # Both take seconds; on two cores they take them at the same time.
            local = start_local_service(model, store, meanwhile=lambda: importlib.import_module("tinker"))

            options = {"base_url": local.base_url, "api_key": local.api_key}
            # A model's directory goes by its name: its path would end up in every checkpoint and adapter.
            name = Path(model).name if Path(model).is_absolute() else model
            opening = in_background(lambda: _service(options, name, local), "the session")
            service = local.wait_for(opening)
        else:
            options, seconds = _options(config), min(_SESSION_SECONDS, config.service_timeout_s or _SESSION_SECONDS)
            service = within(seconds, lambda: _service(options, config.model), "the session")
    service.store = Path(store) if config.service == "local" else None
    service._again = functools.partial(open_connection, config, store)
    return service


def _service(options: dict[str, Any], model: str, local: LocalService | None = None) -> Service:
    import tinker

    keep_keys_home(**options)
    client = functools.partial(tinker.ServiceClient, **options)
    return Service(client, tinker.RestClient(**options), model, options["base_url"], local)


@service_errors(_ASKING)
def ask_for_models(config: TrainingConfig) -> dict[str, Offer]:
    """Return the models that a service other than `local` offers, each with what it says of it.

    Asking costs nothing and begins nothing: whether the service can be reached and accepts the key shows here.

    Raises:
        ServiceError: there is no key, the key is refused, or the service does not answer.
    """
    import tinker

    reach_loopback_directly(named_address(config))
    options = _options(config)
    keep_keys_home(**options)
    return _served_models(lambda: tinker.RestClient(**options))


def _served_models(rest: Callable[[], tinker.RestClient]) -> dict[str, Offer]:
    try:  # the SDK asks for its own settings first, and would go on for minutes
        return offers(within(_ANSWER_SECONDS, lambda: rest().get_server_capabilities().result(), "the models"))
    except TimeoutError as error:
        raise ServiceError(
            f"{_ASKING}: there was no answer within {_ANSWER_SECONDS} s; look at the service's status and try again."
        ) from error
    except Exception as error:
        if getattr(error, "status_code", None) == 404:  # a server of one's own need not know the question
            return {}
        raise


def _options(config: TrainingConfig) -> dict[str, Any]:
    """Return where a remote service is, and its key, as the SDK's clients take them; the service answers there."""
    options = client_options(config)
    url = options["base_url"]
    # The SDK would try for minutes, without a word, if nothing is there, or something that is out of order.
    problem = None if is_hosted(url) else why_not_at_work(url, _PROBE_SECONDS)
    if problem is not None:
        raise ServiceError(f"service: {url} does not answer ({problem}); start the server, or correct the URL.")
    return options


def _metadata(config: TrainingConfig) -> dict[str, str]:
    lora = lora_user_metadata(config.lora.alpha, config.lora.dropout, config.lora.target_modules)
    # A run's losses are over completion tokens: no other log-probability is read.
    return {**lora, **WEIGHTED_LOGPROBS}
