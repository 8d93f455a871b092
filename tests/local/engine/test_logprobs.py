"""Every position has its log-probability, whatever it weighs, unless a client asks for those that weigh something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from support.local_service import Running, logprobs, service_client
from support.reference import CONFIGS, SIZES, download, reference_logprobs, reference_model, write_model
from tinker import types

from tinker_utils.local import WEIGHTED_LOGPROBS, start_local_service

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ROWS = [(40, 20), (1, 0), (17, 17), (29, 28), (1, 1), (300, 270), (17, 3), (12, 0)]
"""Lengths, and how many positions at the front weigh nothing: some, none, all."""

POLICY_LOSSES = ("importance_sampling", "ppo", "cispo", "dro")


class Trained(NamedTuple):
    """A model that has been trained a little, and the same one in plain transformers and peft."""

    client: tinker.TrainingClient
    reference: Any


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server of each architecture: one is computed over packed rows, one over padded ones."""
    directory = tmp_path_factory.mktemp("logprobs")
    base = write_model(request.param, directory)
    with start_local_service(str(base), directory / "store", threads=1) as service:
        yield Running(service.base_url, service.api_key, directory / "store"), base


@pytest.fixture(scope="module")
def client(family: tuple[Running, Path]) -> Iterator[tinker.ServiceClient]:
    with service_client(family[0]) as client:
        yield client


@pytest.fixture
def trained(family: tuple[Running, Path], client: tinker.ServiceClient, tmp_path: Path) -> Trained:
    running, base = family
    model = new_model(client, base.name)
    return Trained(model, reference_model(base, download(running, model, "adapter", tmp_path)))


def new_model(client: tinker.ServiceClient, name: str, metadata: dict[str, str] | None = None) -> tinker.TrainingClient:
    """Without a step the adapter would change nothing."""
    model = client.create_lora_training_client(name, rank=4, seed=2, user_metadata=metadata).result()
    model.forward_backward(batch("cross_entropy", seed=9), "cross_entropy")
    model.optim_step(types.AdamParams(learning_rate=0.03)).result()
    return model


def batch(loss: str, rows: Sequence[tuple[int, int]] = ROWS, seed: int = 0) -> list[types.Datum]:
    """Rows of random tokens; the weights, or the advantages, are 0 at the front of each."""
    rng = np.random.default_rng(seed)
    return [datum(rng, loss, length, front) for length, front in rows]


def datum(rng: np.random.Generator, loss: str, length: int, front: int) -> types.Datum:
    scale = ((np.arange(length) >= front) * rng.uniform(0.1, 1, length)).astype(np.float32)
    given = {"advantages": scale, "logprobs": rng.normal(-8, 1, length).astype(np.float32)}
    return types.Datum(
        model_input=types.ModelInput.from_ints(rng.integers(0, SIZES["vocab_size"], length).tolist()),
        loss_fn_inputs={
            "target_tokens": rng.integers(0, SIZES["vocab_size"], length),
            **({"weights": scale} if loss == "cross_entropy" else given),
        },
    )


def assert_all_right(output: types.ForwardBackwardOutput, reference: Any, data: list[types.Datum]) -> None:
    with torch.no_grad():
        for row, each in zip(logprobs(output), data, strict=True):
            np.testing.assert_allclose(row, reference_logprobs(reference, each), atol=2e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", *POLICY_LOSSES])
def test_each_loss_gives_every_log_probability_forward_and_back(trained: Trained, loss: str) -> None:
    data = batch(loss)
    for call in (trained.client.forward, trained.client.forward_backward):
        assert_all_right(call(data, loss).result(), trained.reference, data)


def surprise(data: list[types.Datum], values: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a loss that looks at every position, and whose gradient is another at each."""
    loss = torch.cat([value**2 for value in values]).sum()
    return loss, {"surprise": float(loss.detach())}


@pytest.mark.parametrize("weights", ["given", "left out"])
def test_a_custom_loss_sees_every_position(trained: Trained, weights: str) -> None:
    data = batch("cross_entropy", seed=1)
    if weights == "left out":
        for each in data:
            del each.loss_fn_inputs["weights"]
    output = trained.client.forward_backward_custom(data, surprise).result()
    expected, _ = surprise(data, [reference_logprobs(trained.reference, each) for each in data])
    assert output.metrics["surprise"] == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained.reference.parameters() if p.grad is not None])
    assert trained.client.optim_step(types.AdamParams()).result().metrics["grad_norm"] == pytest.approx(
        norm.item(), rel=1e-3
    )


def test_who_asks_for_less_gets_zeros_there_and_the_same_step(
    family: tuple[Running, Path], client: tinker.ServiceClient
) -> None:
    data = batch("cross_entropy")
    told = np.concatenate([np.asarray(each.loss_fn_inputs["weights"].data) != 0 for each in data])
    whole, less = (new_model(client, family[1].name, metadata) for metadata in (None, dict(WEIGHTED_LOGPROBS)))
    for step in ("forward", "forward_backward"):
        every, some = (getattr(model, step)(data, "cross_entropy").result() for model in (whole, less))
        assert some.metrics["loss:sum"] == pytest.approx(every.metrics["loss:sum"], rel=1e-6)
        found, expected = np.concatenate(logprobs(some)), np.concatenate(logprobs(every))
        np.testing.assert_allclose(found[told], expected[told], atol=1e-5)
        assert (found[~told] == 0).all()
        assert (expected < 0).all()
    norms = [model.optim_step(types.AdamParams()).result().metrics["grad_norm"] for model in (whole, less)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_what_nobody_can_ask_for_is_refused(family: tuple[Running, Path], client: tinker.ServiceClient) -> None:
    metadata = dict.fromkeys(WEIGHTED_LOGPROBS, "some")
    with pytest.raises(tinker.BadRequestError, match="must be 'weighted', but it is 'some'"):
        client.create_lora_training_client(family[1].name, user_metadata=metadata).result()


def test_a_model_made_of_such_a_ones_checkpoint_gives_every_log_probability(
    family: tuple[Running, Path], client: tinker.ServiceClient
) -> None:
    saved = new_model(client, family[1].name, dict(WEIGHTED_LOGPROBS)).save_state("state").result().path
    model = client.create_training_client_from_state(saved).result()
    output = model.forward(batch("cross_entropy"), "cross_entropy").result()
    assert (np.concatenate(logprobs(output)) < 0).all()
