"""What can be known of a service in trouble, from its responses and from asking it."""

from __future__ import annotations

import httpx
import pytest
from support.dripping import Dripping
from support.relay import Message, Relay, reply

from tinker_utils.service.watch import ServiceWatch, why_not_at_work, why_unreachable


class Scripted(Relay):
    """Answers with the status that stands in the path's last part."""

    async def answer(self, request: Message) -> Message:
        status = request.endpoint.rpartition("/")[2]
        return reply(int(status) if status.isdigit() else 404)


@pytest.fixture
def server():
    with Scripted("http://127.0.0.1:9") as running:
        yield running


def ask(watch: ServiceWatch, server: Relay, *paths: str) -> None:
    with httpx.Client(trust_env=False) as client:
        for path in paths:
            watch.responded(client.post(f"{server.base_url}/api/v1/{path}"))


def test_one_refusal_is_no_news_and_two_in_a_row_are(server):
    watch = ServiceWatch(server.base_url)
    ask(watch, server, "step/503")
    assert watch.trouble() is None
    # Another endpoint's refusal is not the second in a row.
    ask(watch, server, "other/503")
    assert watch.trouble() is None
    ask(watch, server, "step/503")
    assert watch.trouble() == "the service answers 503 Injected"


def test_a_refused_card_is_news_at_once_and_a_heartbeat_says_nothing(server):
    watch = ServiceWatch(server.base_url)
    ask(watch, server, "session_heartbeat", "step/402", "session_heartbeat")
    assert watch.trouble() == "the service answers 402 Injected: {}"
    request = httpx.Request("POST", f"{server.base_url}/api/v1/step/402")
    watch.responded(httpx.Response(402, json={"detail": "the card\nhas expired"}, request=request))
    assert watch.trouble() == "the service answers 402 Payment Required: the card has expired"


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
    with Dripping() as dripping:
        assert why_unreachable(dripping.base_url, 0.3) == "no answer within 0.3 s"


def test_a_good_answer_ends_the_trouble(server):
    watch = ServiceWatch(server.base_url)
    ask(watch, server, "429", "429")
    assert watch.trouble() == "the service answers 429 Injected"
    watch.responded(httpx.Response(200, request=httpx.Request("POST", f"{server.base_url}/api/v1/429")))
    assert watch.trouble() is None


class Overloaded(Relay):
    """Answers everything with one status."""

    status = 503

    async def answer(self, request: Message) -> Message:
        return reply(self.status)


def test_a_service_that_answers_only_to_refuse_is_reachable_but_not_at_work():
    with Overloaded("http://127.0.0.1:9") as server:
        assert why_unreachable(server.base_url, 1.0) is None
        assert why_not_at_work(server.base_url, 1.0) == "HTTP 503"
        server.status = 429
        assert why_not_at_work(server.base_url, 1.0) == "HTTP 429"
        server.status = 404  # a server that does not know the question
        assert why_not_at_work(server.base_url, 1.0) is None
    assert why_not_at_work("http://127.0.0.1:1", 1.0) == "[Errno 111] Connection refused"
