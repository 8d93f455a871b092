"""The embedded server keeps the contract, and the contract sees where a server does not."""

from __future__ import annotations

import pytest

from contract.__main__ import expectation
from contract.questions import QUESTIONS, answers, engine

pytestmark = pytest.mark.usefixtures("key")


def test_the_embedded_server_answers_each_question_as_it_should(service, local_service):
    asked = engine(service, "tiny", local_service.base_url)
    found = dict(answers(asked))
    assert {name: answer for name, answer in found.items() if answer != "ok"} == expectation("embedded"), asked.notes
    assert len(found) > len(QUESTIONS)
