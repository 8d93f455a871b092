"""What a service says of its models: the real SDK, and a server that answers the question as a test tells it to."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.relay import Relay, reply

from tinker_utils import preflight
from tinker_utils.errors import ConfigError
from tinker_utils.plan.preparing import prepare
from tinker_utils.service.client import ask_for_models
from tinker_utils.service.offered import Offer, check_trainable
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")


class Offering(Relay):
    """Says itself which models there are, and passes on the rest; `asked` are the requests that begin something."""

    def __init__(self, target):
        super().__init__(target)
        self.said = {}
        self.asked = []

    async def answer(self, request):
        if request.endpoint == "get_server_capabilities":
            return reply(200, json.dumps(self.said).encode())
        self.asked.append(request.endpoint)
        return await self.forward(request)

    def offers(self, **models):
        self.said = {"supported_models": [{"model_name": name, **facts} for name, facts in models.items()]}


@pytest.fixture
def offering(local_service):
    with Offering(local_service.base_url) as relay:
        yield relay


@pytest.fixture
def there(config, offering):
    return dataclasses.replace(config, service=offering.base_url)


def checked(config, run):
    (check,) = (c for c in preflight(config, run.path, probe=False).checks if c.name == "service")
    return check.status, check.sentence


def test_the_embedded_server_says_that_it_trains(config):
    offered = ask_for_models(config)
    assert offered["tiny"] == Offer(4096, trainable=True)


async def test_a_model_that_is_not_trained_any_more_ends_it(there, offering, run):
    offering.offers(tiny={"trainable": False}, huge={}, tinier={"trainable": True}, tinyer={"trainable": False})
    sentence = (
        "model: the service offers tiny, but does not train it any more; choose one that it trains, such as tinier or "
        "huge."
    )
    assert checked(there, run) == ("fail", sentence)
    with pytest.raises(ConfigError, match="does not train it any more"):
        await fit(there, run.path, preparation=prepare(there))
    assert not run.path.exists()
    assert "create_model" not in offering.asked


def test_a_service_that_trains_nothing():
    with pytest.raises(ConfigError, match="it trains none, so choose another service"):
        check_trainable("a", {"a": Offer(trainable=False), "b": Offer(trainable=False)})


def test_three_of_the_most_similar_are_named_and_names_are_cut():
    offered = dict.fromkeys(["Qwen/Qwen3-8B-Base", "openai/gpt-oss-20b", "Qwen/Qwen3-32B", "Qwen/Qwen3.5-9B"], Offer())
    with pytest.raises(ConfigError) as refused:
        check_trainable("Qwen/Qwen3-8B", {**offered, "Qwen/Qwen3-8B": Offer(trainable=False), "Qwen" * 1000: Offer()})
    assert str(refused.value).endswith("such as Qwen/Qwen3-8B-Base or Qwen/Qwen3-32B or Qwen/Qwen3.5-9B.")


@pytest.mark.parametrize(
    ("facts", "offer"),
    [
        ({}, Offer()),
        ({"trainable": None, "max_context_length": None}, Offer()),
        ({"trainable": True, "max_context_length": 4096, "sampleable": False}, Offer(4096, trainable=True)),
        ({"license": {"name": "MIT"}, "supports_lora": False}, Offer()),
    ],
)
def test_what_a_server_does_not_say_is_not_known(there, offering, run, facts, offer):
    offering.offers(tiny=facts)
    assert ask_for_models(there) == {"tiny": offer}
    assert checked(there, run) == ("ok", "It answers and accepts the key.")


def test_a_server_may_name_no_models_or_no_names(there, offering, run):
    for models in ([], [{}], [{"model_name": None}], [{"model_name": ""}, {"name": "tiny", "trainable": False}]):
        offering.said = {"supported_models": models}
        assert ask_for_models(there) == {}
        assert checked(there, run) == ("ok", "It answers and accepts the key.")


@pytest.mark.parametrize("said", [{}, {"supported_models": "tiny"}, {"supported_models": [{"trainable": "maybe"}]}])
def test_an_answer_of_another_kind_is_a_sentence(there, offering, run, said):
    offering.said = said
    status, sentence = checked(there, run)
    assert status == "fail"
    assert sentence.startswith("asking the service for its models: ")
