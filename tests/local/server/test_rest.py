"""Runs, checkpoints, sessions and downloads through the SDK's RestClient."""

from __future__ import annotations

import datetime
import urllib.error
import urllib.request

import pytest
import tinker
from support.local_service import MODEL, Running, call, random_data, rest_client, service_client
from tinker import types


@pytest.fixture(scope="module")
def rest(local_service: Running) -> tinker.RestClient:
    return rest_client(local_service)


@pytest.fixture
def client(local_service: Running):
    with service_client(local_service) as client:
        yield client


@pytest.fixture
def model(client: tinker.ServiceClient) -> tinker.TrainingClient:
    return client.create_lora_training_client(MODEL, rank=4, user_metadata={"note": "mine"}).result()


def test_capabilities_name_the_model(rest: tinker.RestClient) -> None:
    (served,) = rest.get_server_capabilities().result().supported_models
    assert (served.model_name, served.max_context_length, served.trainable) == (MODEL, 4096, True)


def test_health_needs_the_key_too(local_service: Running) -> None:
    assert call(local_service, "GET", "/api/v1/healthz") == (200, {"status": "ok"})
    assert call(local_service, "GET", "/api/v1/healthz", headers={"X-API-Key": "no"})[0] == 401


def test_checkpoints_are_listed_and_deleted(rest: tinker.RestClient, model: tinker.TrainingClient) -> None:
    state = model.save_state("state", ttl_seconds=3600, user_metadata={"k": "v"}).result().path
    sampler = model.save_weights_for_sampler("sampler").result().path
    external = model.save_weights_external("external").result().path
    listed = {c.tinker_path: c for c in rest.list_checkpoints(model.model_id).result().checkpoints}
    assert {path: c.checkpoint_type for path, c in listed.items()} == {
        state: "training",
        sampler: "sampler",
        external: "external",
    }
    found = listed[state]
    assert (found.checkpoint_id, found.user_metadata) == ("weights/state", {"k": "v"})
    assert found.size_bytes > 0
    assert found.expires_at - found.time == datetime.timedelta(hours=1)
    assert listed[sampler].expires_at is None
    run = rest.get_training_run(model.model_id).result()
    assert (run.last_checkpoint.tinker_path, run.last_sampler_checkpoint.tinker_path) == (state, sampler)
    rest.delete_checkpoint_from_tinker_path(state).result()
    rest.delete_checkpoint(model.model_id, "sampler_weights/sampler").result()
    assert [c.tinker_path for c in rest.list_checkpoints(model.model_id).result().checkpoints] == [external]
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(state).result()


def test_a_ttl_is_set_and_removed(rest: tinker.RestClient, model: tinker.TrainingClient) -> None:
    path = model.save_state("ttl").result().path
    before = datetime.datetime.now(datetime.UTC)

    def expiry() -> datetime.datetime | None:
        return rest.list_checkpoints(model.model_id).result().checkpoints[0].expires_at

    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert datetime.timedelta(0) <= expiry() - before - datetime.timedelta(hours=2) < datetime.timedelta(minutes=5)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expiry() is None
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds must be from 3600"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 10).result()


def test_runs_and_pages(rest: tinker.RestClient, model: tinker.TrainingClient) -> None:
    run = rest.get_training_run(model.model_id).result()
    assert (run.base_model, run.lora_rank, run.is_lora, run.user_metadata) == (MODEL, 4, True, {"note": "mine"})
    model.save_state("one").result()
    everything = rest.list_training_runs(limit=1000).result()
    assert model.model_id in {run.training_run_id for run in everything.training_runs}
    page = rest.list_training_runs(limit=1, offset=0).result()
    assert [run.training_run_id for run in page.training_runs] == [everything.training_runs[0].training_run_id]
    assert page.cursor.total_count == everything.cursor.total_count
    assert rest.list_user_checkpoints(limit=1).result().cursor.limit == 1
    with pytest.raises(tinker.NotFoundError):
        rest.get_training_run("nothing").result()


def test_what_a_checkpoint_was_trained_from(rest: tinker.RestClient, client: tinker.ServiceClient) -> None:
    model = client.create_lora_training_client(MODEL, rank=2, train_mlp=False).result()
    facts = rest.get_weights_info_by_tinker_path(model.save_state("info").result().path).result()
    assert (facts.base_model, facts.lora_rank, facts.train_mlp, facts.train_attn) == (MODEL, 2, False, True)


def test_sessions_and_samplers(rest: tinker.RestClient, local_service: Running) -> None:
    client = tinker.ServiceClient(
        base_url=local_service.base_url, api_key=local_service.api_key, user_metadata={"a": "b"}, display_name="name"
    )
    model = client.create_lora_training_client(MODEL, rank=2).result()
    sampler = client.create_sampling_client(base_model=MODEL).result()
    session_id = client.holder.get_session_id()
    session = rest.get_session(session_id).result()
    assert (session.training_run_ids, session.user_metadata, session.display_name) == (
        [model.model_id],
        {"a": "b"},
        "name",
    )
    (sampler_id,) = session.sampler_ids
    assert rest.get_sampler(sampler_id).result().base_model == sampler.get_base_model() == MODEL
    assert rest.list_sessions(limit=1).result().sessions == [session_id]
    client.close("success").result()
    assert rest.get_session(session_id).result().training_run_ids == []


def test_a_finished_session_takes_nothing_more(local_service: Running) -> None:
    client = service_client(local_service)
    model = client.create_lora_training_client(MODEL, rank=2).result()
    session_id = client.holder.get_session_id()
    finish = f"/api/v1/sessions/{session_id}/finish"
    body = b'{"reason": {"type": "success"}, "detail": null}'
    for _ in range(2):
        assert call(local_service, "POST", finish, body, {"Content-Type": "application/json"})[0] == 204
    with pytest.raises(tinker.APIStatusError, match="has ended") as caught:
        model.forward(random_data(0), "cross_entropy").result()
    assert caught.value.status_code == 410
    client.holder.close()


def test_finishing_a_session_ends_its_queue_and_spares_the_others(local_service: Running) -> None:
    client, other = service_client(local_service), service_client(local_service)
    model = client.create_lora_training_client(MODEL, rank=2).result()
    spared = other.create_lora_training_client(MODEL, rank=2).result()
    queued = [model.forward_backward(random_data(step, [400] * 4), "cross_entropy") for step in range(20)]
    client.close("interrupted").result()
    assert spared.forward(random_data(0), "cross_entropy").result().metrics["loss:sum"] > 0
    assert not queued[-1].future().done() or queued[-1].future().exception() is not None
    other.close("success").result()


def test_downloads_need_their_signature_only(
    rest: tinker.RestClient, model: tinker.TrainingClient, local_service: Running
) -> None:
    path = model.save_weights_external("download").result().path
    other = model.save_weights_external("other").result().path
    answer = rest.get_external_weights_urls(path).result()
    assert answer.expires > datetime.datetime.now(datetime.UTC)
    assert set(answer.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    url = answer.urls["adapter_config.json"]
    assert local_service.api_key not in url
    with urllib.request.urlopen(url) as response:
        assert b'"peft_type": "LORA"' in response.read()
    name = f"/{other.rpartition('/')[2]}/"
    forged = [
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("/download/", name),
        url.replace("expires=", "expires=9"),
        url.replace("adapter_config.json", "checkpoint.json"),
        url.replace("adapter_config.json", "..%2F..%2Flock"),
        url.partition("?")[0],
    ]
    for wrong in forged:
        assert wrong != url
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(wrong)
        caught.value.close()
        assert caught.value.code in (403, 404), wrong
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    caught.value.close()
    assert caught.value.code == 404


def test_only_external_weights_can_be_downloaded(local_service: Running, model: tinker.TrainingClient) -> None:
    model.save_state("state").result()
    path = f"/api/v1/training_runs/{model.model_id}/checkpoints/weights/state/external_weights_urls"
    assert call(local_service, "GET", path)[0] == 400


def test_encryption_is_refused_not_ignored(model: tinker.TrainingClient) -> None:
    with pytest.raises(tinker.BadRequestError, match="does not encrypt"):
        model.save_weights_external("secret", age_encryption_recipients=["age1xyz"]).result()


def test_an_optimizer_step_reports_what_it_did(model: tinker.TrainingClient) -> None:
    model.forward_backward(random_data(0), "cross_entropy")
    metrics = model.optim_step(types.AdamParams(learning_rate=0.25)).result().metrics
    assert set(metrics) == {"grad_norm"}
    assert metrics["grad_norm"] > 0
