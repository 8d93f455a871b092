"""A few thousand of the cases that `make fuzz` runs by the hundred thousand: the same ones each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fuzz import files, strangers, wire
from fuzz.__main__ import SHARES
from fuzz.mutation import mutated

CASES = 300
quick = settings(
    max_examples=CASES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def test_each_target_has_its_share_of_a_campaign() -> None:
    assert {*files.TARGETS, "wire", "strangers"} == SHARES.keys()
    assert sum(SHARES.values()) == 1000


@pytest.mark.filterwarnings("ignore")  # what is drawn with absurd values
@pytest.mark.parametrize("name", files.TARGETS)
def test_files_are_read_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    documents, directory = files.corpus(name), tmp_path_factory.mktemp(name)
    for document in documents:
        files.TARGETS[name](directory, document)

    @quick
    @given(st.randoms(use_true_random=False) | st.binary(max_size=200))
    def read(source: Random | bytes) -> None:
        files.TARGETS[name](directory, source if isinstance(source, bytes) else mutated(documents, source)[:4096])

    read()


def send_mutations(case: Callable[[bytes], object], documents: Sequence[bytes]) -> None:
    """Send what the documents become when they are changed at random."""

    @quick
    @given(st.randoms(use_true_random=False))
    def send(rng: Random) -> None:
        case(mutated(documents, rng)[:4096])

    send()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    server = wire.Wire(tmp_path_factory.mktemp("wire"))
    yield server
    server.close()


def test_the_valid_requests_are_answered(server: wire.Wire) -> None:
    for document in wire.corpus():
        server.case(document)


def test_the_server_refuses_what_is_wrong_and_goes_on_serving(server: wire.Wire) -> None:
    send_mutations(server.case, wire.corpus())


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory):
    port = strangers.Strangers(tmp_path_factory.mktemp("strangers"))
    yield port
    port.close()


def test_who_has_no_key_is_refused_and_leaves_nothing(port: strangers.Strangers) -> None:
    documents = strangers.corpus()
    for document in documents:
        port.case(document)
    port.settle()
    send_mutations(port.case, documents)
    port.settle()
