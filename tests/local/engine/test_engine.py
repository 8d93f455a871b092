"""The parts of the engine by themselves: losses by their formulas, micro-batches, queues."""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading

import numpy as np
import pytest
import torch
from support.local_service import MODEL_DIRECTORY

from tinker_utils.errors import ServiceError
from tinker_utils.local.engine import gradients, head
from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.engine.losses import LOSSES
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraMetadata, LoraSwitches, resolve
from tinker_utils.local.protocol.tensors import Datum, LossRequest
from tinker_utils.local.server import app, scheduler
from tinker_utils.local.server.model_source import find
from tinker_utils.local.server.scheduler import Lanes, Result, Worker

# Two threads that wait for each other on a busy machine are slower than one.
torch.set_num_threads(1)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]


def test_the_installed_sdk_is_the_one_whose_protocol_is_spoken() -> None:
    """Fails when tinker is upgraded: check the protocol against the new SDK, then raise `SDK_VERSION`."""
    assert app.sdk_warning(importlib.metadata.version("tinker")) is None


@pytest.mark.parametrize("version", ["0.37.9", "0.39.0", "0.380.1", "1.0"])
def test_another_sdk_is_named_plainly(version: str) -> None:
    sentence = app.sdk_warning(version)
    assert sentence is not None
    assert sentence.startswith("tinker_utils.local speaks the wire protocol of tinker 0.38, but this is tinker ")
    assert version in sentence


LOGPROBS = np.array([-0.5, -2.0, -1.0, -3.0])
OLD = np.array([-0.6, -1.0, -1.0, -3.5])
ADVANTAGES = np.array([1.0, -2.0, 0.5, 3.0])
RATIO = np.exp(LOGPROBS - OLD)


@pytest.mark.parametrize(
    ("name", "options", "value", "gradient"),
    [
        ("cross_entropy", {}, -LOGPROBS * ADVANTAGES, -ADVANTAGES),
        ("importance_sampling", {}, -RATIO * ADVANTAGES, -RATIO * ADVANTAGES),
        (
            "ppo",
            {},
            -np.minimum(RATIO * ADVANTAGES, RATIO.clip(0.8, 1.2) * ADVANTAGES),
            # Where the clipped product is the smaller one, the ratio is constant.
            -np.where(RATIO.clip(0.8, 1.2) * ADVANTAGES >= RATIO * ADVANTAGES, RATIO * ADVANTAGES, 0),
        ),
        (
            "cispo",
            {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5},
            -RATIO.clip(0.5, 1.5) * LOGPROBS * ADVANTAGES,
            -RATIO.clip(0.5, 1.5) * ADVANTAGES,
        ),
        (
            "dro",
            {"beta": 0.1},
            -(LOGPROBS * ADVANTAGES - 0.05 * (LOGPROBS - OLD) ** 2),
            -(ADVANTAGES - 0.1 * (LOGPROBS - OLD)),
        ),
    ],
)
def test_losses_and_their_gradients_by_formula(name: str, options: dict[str, float], value, gradient) -> None:
    loss = LOSSES[name]
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    inputs = {"weights": ADVANTAGES, "advantages": ADVANTAGES, "logprobs": OLD}
    terms = loss.terms(logprobs, {key: torch.tensor(inputs[key]) for key in loss.inputs}, {**loss.options, **options})
    np.testing.assert_allclose(terms.detach(), value)
    terms.sum().backward()
    np.testing.assert_allclose(logprobs.grad, gradient)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Base(str(MODEL_DIRECTORY), "cpu"))


def rows(lengths: tuple[int, ...] = (40, 3, 17, 17, 29), seed: int = 0) -> tuple[Datum, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        Datum(
            rng.integers(0, 900, length),
            {
                "target_tokens": rng.integers(0, 900, length),
                "weights": rng.uniform(0, 1, length).astype(np.float32) * (np.arange(length) % 3 > 0),
            },
        )
        for length in lengths
    )


@pytest.mark.parametrize(("budget", "elements"), [(1, 1 << 25), (50, 1), (100, 20_000)])
def test_splitting_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch, budget: int, elements: int) -> None:
    """However a batch is split into micro-batches and slices, loss, logprobs and gradient are the same."""

    def run(model_id: str) -> tuple[gradients.LossOutput, torch.Tensor]:
        spec = resolve("tiny", LoraSwitches(4, seed=1), LoraMetadata(), engine.base.linear_modules)
        engine.create(model_id, spec)
        adapter = engine._models[model_id]
        adapter._weights.data += 0.01  # so that the head's gradient reaches both factors
        with engine._activated(adapter):
            adapter.prepare_gradient()
            output = gradients.compute(engine._network(adapter), rows(), LOSSES["cross_entropy"], {}, backward=True)
        gradient = adapter._gradient.clone()
        engine.unload(model_id)
        return output, gradient

    whole, whole_gradient = run("whole")
    monkeypatch.setattr(engine.base.decoder, "micro_batch_tokens", budget)
    monkeypatch.setattr(head, "SLICE_ELEMENTS", elements)
    split, split_gradient = run("split")
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    for ours, theirs in zip(split.logprobs, whole.logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-4, atol=1e-4)


def test_micro_batches_keep_to_their_budget_and_lose_no_row() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = [(int(rng.integers(1, 3)), int(rng.integers(1, 200))) for _ in range(rng.integers(1, 40))]
        batches = list(gradients.micro_batches(sizes, 256, packed=False))
        assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
        for batch in batches:
            assert len({sizes[index][0] for index in batch}) == 1
            assert len(batch) * max(sizes[index][1] for index in batch) <= 256


def test_the_same_seed_makes_the_same_weights_first_or_later(engine: Engine) -> None:
    spec = resolve("tiny", LoraSwitches(4, seed=7), LoraMetadata(), engine.base.linear_modules)
    weights = []
    for base in (engine, Engine(Base(str(MODEL_DIRECTORY), "cpu"))):
        base.create("seeded", spec)
        weights.append(base._models["seeded"].weights())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
    assert any(tensor.abs().sum() > 0 for tensor in weights[0].values())


def test_an_unloaded_model_leaves_the_base_model_as_it_was(engine: Engine) -> None:
    tokens = torch.arange(9)[None]
    with torch.inference_mode():
        fresh = Base(str(MODEL_DIRECTORY), "cpu")
        before = fresh.logits(fresh.hidden(tokens))
    engine.create("gone", resolve("tiny", LoraSwitches(4), LoraMetadata(), engine.base.linear_modules))
    engine._models["gone"]._weights.data += 1
    engine.unload("gone")
    with torch.inference_mode(), engine._activated(None):
        assert torch.equal(engine.base.logits(engine.base.hidden(tokens)), before)
    with pytest.raises(RequestError, match="does not exist"):
        engine.spec("gone")


def test_what_is_too_small_to_be_shared_is_computed_by_one_thread(engine: Engine) -> None:
    # A layer of the packaged model: q, k and v, o, then gate, up and down; its head has fewer weights.
    assert engine.base.part_weights == 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 384
    engine.create("m", resolve("tiny", LoraSwitches(4), LoraMetadata(), engine.base.linear_modules))
    engine.base.threads = 2
    try:
        for length, threads in ((3, 1), (240, 2), (10, 1)):
            engine._evaluate(engine._model("m"), LossRequest(rows((length,)), "cross_entropy", {}, True), False)
            assert torch.get_num_threads() == threads
    finally:
        engine.base.threads = 1
        engine.unload("m")
        torch.set_num_threads(1)


def test_a_model_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ServiceError, match="is not there: give a directory"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(ServiceError, match="cannot be loaded: give a directory"):
        Base(str(tmp_path), "cpu")


def test_names_under_which_a_directory_is_served() -> None:
    served = find(str(MODEL_DIRECTORY), ("Qwen/Qwen3-8B",))
    assert served.names == (str(MODEL_DIRECTORY), "Qwen/Qwen3-8B", "base_model")
    assert find("tiny").source == str(MODEL_DIRECTORY)
    assert find("Qwen/Qwen3-0.6B").names == ("Qwen/Qwen3-0.6B",)
    with pytest.raises(RequestError, match="ask for Qwen/Qwen3-0.6B"):
        find("Qwen/Qwen3-0.6B").check("tiny")


def result(text: str) -> Result:
    return Result(text.encode())


async def test_a_request_waits_for_the_ones_before_it() -> None:
    lanes, order = Lanes(Worker.started()), []
    lanes.open("m")

    def job(number: int) -> Result:
        order.append(number)
        return result(str(number))

    ids = {number: lanes.submit("m", number, lambda number=number: job(number)) for number in (2, 0, 3, 1)}
    answers = [await lanes.retrieve(ids[number], 10) for number in (3, 2, 1, 0)]
    assert order == [0, 1, 2, 3]
    assert [answer.body for answer in answers] == [b"3", b"2", b"1", b"0"]


async def test_a_request_whose_predecessor_never_comes_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = Lanes(Worker.started())
    lanes.open("m")
    early = lanes.submit("m", 1, lambda: result("early"))
    assert await lanes.retrieve(early, 0) is None
    monkeypatch.setattr(scheduler, "GAP_LIMIT_S", 0.0)
    assert b"request 0, which never came" in (await lanes.retrieve(early, 10)).body
    late = lanes.submit("m", 0, lambda: result("late"))
    assert (await lanes.retrieve(late, 10)).body == b"late"
    after = lanes.submit("m", 2, lambda: result("after"))
    assert (await lanes.retrieve(after, 10)).body == b"after"


async def test_lanes_take_turns() -> None:
    """A long queue in one lane does not keep another waiting for its end."""
    worker, order, begin = Worker.started(), [], threading.Event()
    lanes = Lanes(worker)
    for lane in ("long", "short"):
        lanes.open(lane)

    def job(name: str) -> Result:
        begin.wait(10)
        order.append(name)
        return result(name)

    last = [lanes.submit("long", number, lambda: job("long")) for number in range(6)][-1]
    short = lanes.submit("short", 0, lambda: job("short"))
    begin.set()
    await asyncio.gather(lanes.retrieve(last, 10), lanes.retrieve(short, 10))
    assert order.index("short") <= 2


async def test_a_failure_is_told_and_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    lanes = Lanes(Worker.started())
    lanes.open("m")

    def fail(error: Exception) -> Result:
        raise error

    user = lanes.submit("m", 0, lambda: fail(RequestError("no such thing")))
    bug = lanes.submit("m", 1, lambda: fail(ZeroDivisionError("oops")))
    fine = lanes.submit("m", 2, lambda: result("fine"))
    assert (await lanes.retrieve(user, 10)).body == b'{"error": "no such thing", "category": "user"}'
    assert b'"category": "server"' in (await lanes.retrieve(bug, 10)).body
    assert (await lanes.retrieve(fine, 10)).body == b"fine"
    assert "ZeroDivisionError" in caplog.text


async def test_results_are_kept_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "RETRIEVED_RESULTS_KEPT", 3)
    lanes = Lanes(Worker.started())
    lanes.open("m")
    ids = [lanes.submit("m", number, lambda number=number: result(str(number))) for number in range(6)]
    for request_id in ids:
        await lanes.retrieve(request_id, 10)
    assert (await lanes.retrieve(ids[-1], 10)).body == b"5"
    with pytest.raises(RequestError, match="retrieved long ago"):
        await lanes.retrieve(ids[0], 10)
    assert lanes.submit("m", 0, lambda: result("again")) == ids[0]


async def test_closing_a_lane_tells_those_who_wait() -> None:
    lanes, begin = Lanes(Worker.started()), threading.Event()
    lanes.open("m")
    lanes.submit("m", 0, lambda: begin.wait(10) and result("running"))
    waiting = asyncio.create_task(lanes.retrieve(lanes.submit("m", 1, lambda: result("never")), 10))
    await asyncio.sleep(0)
    lanes.close("m", "It is over.")
    begin.set()
    assert b"It is over." in (await waiting).body
