"""The client and its models against the embedded server: what a run asks of a service, call by call."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tinker_utils.batching import Batch, Example
from tinker_utils.errors import CheckpointGoneError, ServiceError
from tinker_utils.service.client import ask_for_models, connect

pytestmark = pytest.mark.usefixtures("key")


def example(*tokens: int, prompt: int = 2) -> Example:
    """Return an example whose first tokens are the prompt."""
    weights = np.array([i >= prompt for i in range(1, len(tokens))], np.float32)
    return Example(np.array(tokens, np.int32), weights)


BATCH = Batch((example(5, 6, 7, 8), example(9, 10, 11, 12, 13)))


@pytest.fixture
def model(service, config):
    return service.new_model(config)


def test_a_step_is_on_the_mean_over_the_batchs_completion_tokens(model):
    """The loss falls by steps on it, and is what the evaluation of the weights before the step gave."""
    (before,) = model.submit_evaluation([BATCH]).result()
    loss, figures = model.submit_step(BATCH, 1e-2, 0.0, 0.0).result()
    (after,) = model.submit_evaluation([BATCH]).result()
    assert BATCH.completion_tokens == 5
    # The tiny model is trained with dropout, which an evaluation has none of.
    assert loss.total == pytest.approx(before.total, rel=0.2)
    assert loss.reported == pytest.approx(loss.total, rel=1e-4), "the service's weighted sum, turned back into nats"
    assert after.total < before.total
    assert before.total == pytest.approx(sum(before.totals))
    assert len(before.totals) == 2
    assert math.isfinite(figures["grad_norm"])


def test_the_gradient_does_not_depend_on_how_tokens_split_over_examples(service, config):
    """A batch twice over has the same mean loss, and so the same gradient: what is sent is normalized by its tokens."""
    still = dataclasses.replace(config, lora=dataclasses.replace(config.lora, dropout=0.0))
    norms = []
    for batch in (BATCH, Batch(BATCH.data * 3)):
        loss, figures = service.new_model(still).submit_step(batch, 1e-2, 0.0, 0.0).result()
        norms.append((loss.total / batch.completion_tokens, figures["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_nothing_is_sent_of_an_empty_batch(model):
    submitted = model.submit_step(Batch(()), 1e-2, 0.0, 0.0)
    loss, figures = submitted.result()
    assert (submitted.futures, loss.total, loss.totals, figures) == ((), 0.0, (), {})


def test_requests_run_in_the_order_of_their_submission(model):
    """The evaluation between two steps sees the first and not the second, though all were submitted at once."""
    submitted = [
        model.submit_evaluation([BATCH]),
        model.submit_step(BATCH, 1e-2, 0.0, 0.0),
        model.submit_evaluation([BATCH]),
        model.submit_step(BATCH, 1e-2, 0.0, 0.0),
        model.submit_evaluation([BATCH]),
    ]
    first, second, third = (submitted[i].result()[0].total for i in (0, 2, 4))
    assert first > second > third


def test_a_checkpoint_brings_back_weights_and_optimizer(service, config, model):
    model.submit_step(BATCH, 1e-2, 0.0, 0.0)
    path = model.submit_save("here").result()
    assert path == f"tinker://{model.run_id}/weights/here"
    (saved,) = model.submit_evaluation([BATCH]).result()
    model.submit_step(BATCH, 1e-2, 0.0, 0.0)
    (went_on,) = model.submit_evaluation([BATCH]).result()
    restored = service.restored_model(path, config)
    assert restored.submit_evaluation([BATCH]).result()[0].total == saved.total
    restored.submit_step(BATCH, 1e-2, 0.0, 0.0)
    assert restored.submit_evaluation([BATCH]).result()[0].total == went_on.total, "Adam's state is in it, too"


def test_checkpoints_are_listed_expire_and_go(service, config, model):
    paths = [model.submit_save(name).result() for name in ("one", "two")]
    assert dict(service.checkpoints_of(model.run_id)) == dict.fromkeys(paths, False)
    service.expire_checkpoint(paths[0], 3600).result()
    assert dict(service.checkpoints_of(model.run_id)) == {paths[0]: True, paths[1]: False}
    service.expire_checkpoint(paths[0], None).result()
    service.delete_checkpoint(paths[1]).result()
    assert dict(service.checkpoints_of(model.run_id)) == {paths[0]: False}
    with pytest.raises(CheckpointGoneError, match=f"{paths[1]} expired or was deleted"):
        service.restored_model(paths[1], config)
    assert service.checkpoints_of("00000000-0000-4000-8000-000000000000:train:0") == []


def test_answers_come_from_the_base_model_or_from_a_checkpoint(service, config, model):
    prompt = [5, 6, 7]
    taught = Batch((example(5, 6, 7, 20, 21, 22, 23, prompt=3),))
    for _ in range(60):
        model.submit_step(taught, 5e-3, 0.0, 1.0)
    path = model.submit_save("taught").result()
    base, trained = (service.sample([prompt], checkpoint, max_tokens=4) for checkpoint in (None, path))
    assert trained == [[20, 21, 22, 23]]
    assert base != trained
    assert model.submit_samples([prompt], 4).result() == trained


def test_an_adapter_is_downloaded_and_its_export_leaves_nothing(service, model, tmp_path):
    path = model.submit_save("exported").result()
    files = service.download_adapter(path, tmp_path)
    assert {file.name for file in files} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert all(file.parent == tmp_path and file.stat().st_size for file in files)
    assert [name for name, _ in service.checkpoints_of(model.run_id)] == [path]


def test_it_says_what_it_serves(service, config):
    assert "tiny" in service.served_models()
    assert ask_for_models(config).keys() == service.served_models().keys()


def test_a_new_session_follows_an_old_one(config, tmp_path):
    with connect(config, tmp_path) as connection:
        before = connection.new_model(config)
        connection.renew()
        after = connection.new_model(config)
        assert before.run_id.partition(":")[0] != after.run_id.partition(":")[0]
        connection.close()  # twice does no harm


@pytest.mark.parametrize(
    ("address", "key", "said"),
    [
        ("http://127.0.0.1:1", "tml-key", "http://127.0.0.1:1 does not answer"),
        (None, "tml-wrong-key", "TINKER_UTILS_SERVICE_KEY.*: set it"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_sentence(config, tmp_path, monkeypatch, address, key, said):
    monkeypatch.setenv("TINKER_UTILS_SERVICE_KEY", key)
    there = config if address is None else dataclasses.replace(config, service=address)
    with pytest.raises(ServiceError, match=said) as refused:
        connect(there, tmp_path)
    assert key not in str(refused.value)


def test_an_embedded_service_that_has_ended_is_not_waited_for(config, tmp_path):
    with connect(dataclasses.replace(config, service="local"), tmp_path / "store") as connection:
        connection.check_alive()
        connection._local.process.kill()
        connection._local.process.wait()
        with pytest.raises(ServiceError, match=r"the embedded service ended with status -9 .* latest checkpoint"):
            connection.check_alive()
