"""What a probe finds out: the embedded server, and relays before it that lie of one thing each."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np
import pytest
from support.faulty_service import Fault, FaultyService, hanging, refused
from support.local_service import service_client
from support.older_server import TUFT, OlderServer
from support.relay import Message, Relay
from support.small_runs import records

from tinker_utils import fit_blocking, preflight
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ServiceError
from tinker_utils.local.protocol.tensors import messages, parse_forward_backward
from tinker_utils.run.state import ServerProbe
from tinker_utils.service import probe
from tinker_utils.service.client import connect

pytestmark = pytest.mark.usefixtures("key")
TRUE = dict.fromkeys(
    ("restores", "restores_optimizer", "samples", "samples_trained", "unharmed", "exports", "deletes", "sums_weights",
     "splits", "clips"), True,
)  # fmt: skip


class Lying(Relay):
    """Passes on what `bend` makes of each request, and of its reply."""

    async def answer(self, request: Message) -> Message | None:
        return self.bend_reply(request, await self.forward(self.bend(request)))

    def bend(self, request: Message) -> Message:
        return request

    def bend_reply(self, request: Message, answered: Message) -> Message:
        return answered


def changed(request: Message, endpoint: str, **fields: object) -> Message:
    if request.endpoint != endpoint:
        return request
    return request.with_body(json.dumps({**json.loads(request.body), **fields}).encode())


class NoOptimizer(Lying):
    """Restores the weights, and says that it has restored the optimizer."""

    def bend(self, request):
        return changed(request, "load_weights", optimizer=False)


class NoClipping(Lying):
    def bend(self, request):
        if request.endpoint != "optim_step":
            return request
        params = {**json.loads(request.body)["adam_params"], "grad_clip_norm": 0.0}
        return changed(request, "optim_step", adam_params=params)


class Normalizing(Lying):
    """Takes each row's mean, whatever its weights, and gives no norm of the gradient."""

    def bend(self, request):
        if request.endpoint != "forward_backward":
            return request
        batch = parse_forward_backward(request.body)
        for datum in batch.data:
            weights = datum.loss_fn_inputs["weights"]
            given = np.frombuffer(weights.dense, "<f4")
            weights.dense = (given / given.sum()).astype("<f4").tobytes()
        return request.with_body(batch.SerializeToString())

    def bend_reply(self, request, answered):
        if request.endpoint == "retrieve_future" and b"grad_norm" in answered.body:
            return answered.with_body(json.dumps({**json.loads(answered.body), "metrics": {}}).encode())
        return answered


class PerRequest(Normalizing):
    """Takes the mean over the tokens of each request: so a batch has not the gradient of its parts."""

    def bend(self, request):
        if request.endpoint != "forward_backward":
            return request
        batch = parse_forward_backward(request.body)
        count = sum(len(datum.loss_fn_inputs["weights"].dense) // 4 for datum in batch.data)
        for datum in batch.data:
            weights = datum.loss_fn_inputs["weights"]
            weights.dense = (np.frombuffer(weights.dense, "<f4") / count).astype("<f4").tobytes()
        return request.with_body(batch.SerializeToString())


class BaseModel(Lying):
    """Answers samples with the base model, whatever weights were asked for."""

    session = ""

    def bend(self, request):
        return changed(request, "asample", sampling_session_id=self.session)


class Harming(Lying):
    """Leaves the model in training with other weights when it has been sampled from."""

    sampled = False

    def bend_reply(self, request, answered):
        self.sampled |= request.endpoint == "asample"
        passed = request.headers.get("x-tinker-request-type", "").startswith("Forward")
        if not (self.sampled and passed and "protobuf" in answered.headers.get("content-type", "")):
            return answered
        output = messages.ForwardBackwardOutput()
        output.ParseFromString(answered.body)
        for each in output.loss_fn_outputs:
            field = each.fields["logprobs"]
            field.data = (np.frombuffer(field.data, "<f4") - 3).astype("<f4").tobytes()
        return answered.with_body(output.SerializeToString())


def found_by(relay, config, directory) -> ServerProbe:
    with connect(dataclasses.replace(config, service=relay.base_url), directory) as service:
        return probe.probe_server(service, config)


def verdicts(found: ServerProbe) -> dict[str, bool | None]:
    return {name: getattr(found, name) for name in TRUE}


def test_the_embedded_server_does_all_of_it_for_a_few_hundred_tokens(service, config):
    found = probe.probe_server(service, config)
    assert verdicts(found) == TRUE
    assert found.refusals == {}
    assert 100 < found.tokens < 900 < probe.MAX_TOKENS


@pytest.mark.parametrize(
    ("lie", "seen"),
    [
        (NoOptimizer, {"restores_optimizer": False}),
        (NoClipping, {"clips": False}),
        (Normalizing, {"sums_weights": False}),
        (PerRequest, {"splits": False}),
        (BaseModel, {"samples_trained": False}),
        (Harming, {"unharmed": False}),
    ],
)
def test_a_lie_is_seen(lie, seen, local_service, config, tmp_path):
    with lie(local_service.base_url) as relay:
        if lie is BaseModel:
            sampler = service_client(local_service).create_sampling_client(base_model="tiny").result()
            relay.session = sampler._sampling_session_id
        assert verdicts(found_by(relay, config, tmp_path)) == {**TRUE, **seen}


def test_a_server_that_sums_and_gives_no_norm_is_believed(local_service, config, tmp_path):
    class NoNorm(Normalizing):
        def bend(self, request):
            return request

    with NoNorm(local_service.base_url) as relay:
        found = found_by(relay, config, tmp_path)
    assert verdicts(found) == TRUE
    assert found.tokens < probe.MAX_TOKENS


def test_a_run_asks_a_server_for_no_more_than_it_can(local_service, config, run, monkeypatch):
    """The server neither samples nor exports: the run says so, takes no samples, and notes it in run.json."""
    monkeypatch.delenv("TINKER_UTILS_PROBE")
    with OlderServer(local_service.base_url, TUFT) as older:
        older.faults = [Fault("asample", refused(400, b'{"detail": "Capability disabled"}'), times=99)]
        there = dataclasses.replace(config, service=older.base_url, samples_at_evaluation=2, epochs=1)
        report = preflight(there, run.path)
        told = [check.sentence for check in report.checks if check.name == "probe"]
        assert [sentence.partition(":")[0] for sentence in told] == [
            "This server cannot sample",
            "This server gives no adapter",
            "The run asks this server for no samples, whatever training.samples_at_evaluation says.",
        ]
        assert "Capability disabled" in told[0]
        asked = len(older.struck)
        result = fit_blocking(there, run.path)
        assert len(older.struck) == asked, "neither the probe nor the run has asked for a sampler again"
    assert result.status == "completed"
    state = json.loads(run.state.read_text())
    assert (state["server"]["samples"], state["server"]["restores_optimizer"]) == (False, True)
    assert set(told) <= {notice["message"] for notice in records(run, "notice")}
    assert not run.samples.exists()


def test_what_was_found_is_kept_for_a_day_beside_the_runs(local_service, config, tmp_path, monkeypatch):
    monkeypatch.delenv("TINKER_UTILS_PROBE")
    runs = tmp_path / "runs"
    with FaultyService(local_service.base_url) as relay:
        there = dataclasses.replace(config, service=relay.base_url)

        def steps_for(**options):
            before = relay.ledger.steps
            report = preflight(there, runs / "one", **options)
            assert [check.status for check in report.checks if check.name == "probe"] == ["ok"]
            return relay.ledger.steps - before

        assert steps_for(probe=False) == 0
        assert not runs.exists()
        assert steps_for() > 0
        (kept,) = runs.iterdir()
        assert kept.name.startswith(".tinker_utils-")
        assert steps_for() == 0
        assert steps_for(probe=True) > 0
        earlier = json.loads(kept.read_text())
        for found in earlier.values():
            found["at"] = time.time() - 25 * 3600
        kept.write_text(json.dumps(earlier))
        assert steps_for() > 0
        kept.write_text("{")
        assert steps_for() > 0
        assert steps_for() == 0


def test_a_server_that_cannot_train_fails_the_check(local_service, config, run, monkeypatch):
    with FaultyService(local_service.base_url) as relay:
        relay.faults = [Fault("forward_backward", refused(422, b'{"detail": "no such loss"}'), times=9)]
        report = preflight(dataclasses.replace(config, service=relay.base_url), run.path, probe=True)
    (failed,) = [check for check in report.checks if check.status == "fail"]
    assert failed.name == "probe"
    assert failed.sentence.startswith("trying what a run needs: ")
    assert "no such loss" in failed.sentence


def test_a_server_that_never_answers_is_given_up(local_service, config, run):
    with FaultyService(local_service.base_url) as relay:
        there = dataclasses.replace(config, service=relay.base_url)
        impatient = dataclasses.replace(there, service_timeout_s=1.0)
        with connect(there, run.path) as service:
            relay.faults = [Fault("create_model", hanging(3600), times=99)]
            checks = preflight(impatient, run.path, service=service, probe=True).checks
            (failed,) = [check.sentence for check in checks if check.name == "probe"]
            assert failed.startswith("trying what a run needs: TimeoutError: no answer within 1 s; ")
        relay.faults = [Fault("create_session", hanging(3600), times=99)]
        with pytest.raises(ServiceError, match="connecting to http.*: TimeoutError: no answer within 1 s; "):
            connect(impatient, run.path)


def test_the_hosted_service_is_asked_only_when_told_to_and_the_price_is_shown(config, run, monkeypatch):
    monkeypatch.delenv("TINKER_UTILS_PROBE")
    hosted = dataclasses.replace(config, service="tinker", model="Qwen/Qwen3-8B")
    (check,) = [c for c in _preflight_offline(hosted, run, monkeypatch).checks if c.name == "probe"]
    assert check.status == "ok"
    price = float(check.sentence.partition("$")[2].rstrip("."))
    assert price == pytest.approx(1200 * 0.60 / 1e6, abs=1e-4)
    assert not math.isnan(price)


def _preflight_offline(config, run, monkeypatch):
    """The hosted service cannot be reached from a test: nothing answers at its address."""
    from tinker_utils.plan.preparing import prepare

    plan = prepare(dataclasses.replace(config, service="local", model="tiny"))
    monkeypatch.setattr("tinker_utils.training.checks.ask_for_models", lambda config: {})
    return preflight(config, run.path, preparation=dataclasses.replace(plan, config=config))


def test_what_is_kept_names_no_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(probe, "probe_server", lambda *_: ServerProbe(at=time.time()))
    config = TrainingConfig(service="http://localhost:1", model=str(tmp_path / "home" / "model"))
    found = probe.known_server(config, tmp_path, service=object(), ask=True)
    assert "/home" not in (tmp_path / probe._FILE).read_text()
    assert found is not None and probe.known_server(config, tmp_path, ask=False) == found
