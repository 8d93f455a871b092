"""What can be known of a service in trouble: real requests through httpx, real loggers."""

from __future__ import annotations

import logging

import httpx
import pytest
import tinker  # noqa: F401  (it silences httpx, as in a run)
from support.relay import Message, Relay, reply

from tinker_utils.service.watch import ServiceWatch, is_at_work, why_unreachable


class Scripted(Relay):
    """Answers with the status that stands in the path's last part."""

    async def answer(self, request: Message) -> Message:
        status = request.endpoint.rpartition("/")[2]
        return reply(int(status) if status.isdigit() else 404)


@pytest.fixture
def server():
    with Scripted("http://127.0.0.1:9") as running:
        yield running


def ask(server: Relay, *paths: str) -> None:
    with httpx.Client(trust_env=False) as client:
        for path in paths:
            client.post(f"{server.base_url}/api/v1/{path}")


def test_one_refusal_is_no_news_and_two_in_a_row_are(server):
    watch = ServiceWatch(server.base_url)
    ask(server, "step/503")
    assert watch.trouble() is None
    # Another endpoint's refusal is not the second in a row.
    ask(server, "other/503")
    assert watch.trouble() is None
    ask(server, "step/503")
    assert watch.trouble() == "the service answers 503 Injected"


def test_what_another_service_answers_is_not_its_business(server):
    watch = ServiceWatch("http://127.0.0.1:1")
    ask(server, "step/500", "step/500")
    assert watch.trouble() is None


def test_a_refused_card_is_news_at_once_and_a_heartbeat_says_nothing(server):
    watch = ServiceWatch(server.base_url)
    ask(server, "session_heartbeat", "step/402", "session_heartbeat")
    assert watch.trouble() == "the service answers 402 Injected"


def test_the_queues_state_has_the_last_word():
    watch = ServiceWatch("http://127.0.0.1:1")
    watch.on_queue_state_change("paused_capacity", None)
    assert watch.trouble() == "paused: the service is short of capacity"
    watch.on_queue_state_change("paused_rate_limit", "three runs are going on")
    assert watch.trouble() == "paused: three runs are going on"
    watch.on_queue_state_change("active", None)
    assert watch.trouble() is None


def test_a_service_that_is_gone_is_found_out_by_asking_it(server):
    watch = ServiceWatch(server.base_url)
    watch.probe()
    assert watch.trouble() is None
    gone = ServiceWatch("http://127.0.0.1:1")
    gone.probe()
    assert gone.trouble() == "the service does not answer ([Errno 111] Connection refused)"
    assert why_unreachable("http://127.0.0.1:1", 1.0) == "[Errno 111] Connection refused"


def test_listening_shows_nobody_what_was_not_shown_before(server, caplog):
    ServiceWatch(server.base_url)
    caplog.set_level(logging.WARNING)
    ask(server, "step/500")
    assert [record for record in caplog.records if record.name == "httpx"] == []


def test_a_good_answer_ends_the_trouble(server):
    watch = ServiceWatch(server.base_url)
    ask(server, "429", "429")
    assert watch.trouble() == "the service answers 429 Injected"
    watch.responded("POST", f"{server.base_url}/api/v1/429", 200, "OK")
    assert watch.trouble() is None


def test_a_checkpoint_that_cannot_be_removed_says_nothing_of_the_training(server):
    watch = ServiceWatch(server.base_url)
    with httpx.Client(trust_env=False) as client:
        for method in ("DELETE", "PUT"):
            for _ in range(2):
                client.request(method, f"{server.base_url}/api/v1/training_runs/a/checkpoints/503")
    assert watch.trouble() is None


class Overloaded(Relay):
    """Answers everything with one status."""

    status = 503

    async def answer(self, request: Message) -> Message:
        return reply(self.status)


def test_a_service_that_answers_only_to_refuse_is_reachable_but_not_at_work():
    with Overloaded("http://127.0.0.1:9") as server:
        assert why_unreachable(server.base_url, 1.0) is None
        assert not is_at_work(server.base_url, 1.0)
        server.status = 429
        assert not is_at_work(server.base_url, 1.0)
        server.status = 404  # a server that does not know the question
        assert is_at_work(server.base_url, 1.0)
    assert not is_at_work("http://127.0.0.1:1", 1.0)
