"""Both decoders keep one contract: the losses, log-probabilities and gradients of plain transformers and peft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from support.reference import SIZES, write_model

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.dropout import Masks
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.engine.gradients import LossOutput, compute
from tinker_utils.local.engine.head import BLOCK_VOCABULARY, FrozenHead
from tinker_utils.local.engine.losses import LOSSES
from tinker_utils.local.engine.padded import PaddedDecoder
from tinker_utils.local.engine.qwen3 import PackedDecoder, supports
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.tensors import Datum

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

VOCABULARY = SIZES["vocab_size"]
PROJECTIONS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
FAMILIES = {"qwen3": PackedDecoder, "llama": PaddedDecoder}


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine(Base(str(directory), "cpu"))


def spec(directory: Path, modules: tuple[str, ...] = PROJECTIONS, dropout: float = 0.0) -> LoraSpec:
    return LoraSpec(str(directory), 4, 8.0, dropout, modules, 5, True, True, "lm_head" in modules)


@pytest.fixture
def adapter(engine: Engine, directory: Path):
    engine.create("model", spec(directory))
    adapter = engine._models["model"]
    adapter._weights.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    yield adapter
    engine.unload("model")


def reference(engine: Engine, directory: Path, path: Path) -> peft.PeftModel:
    path.mkdir()
    engine.write("model", path, optimizer=False)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, path, is_trainable=True).eval()


SHAPES = {
    "one token": [(1, 0)],
    "mixed, with single tokens and a row without weights": [(40, 20), (1, 0), (17, 17), (17, 3), (1, 1), (29, 28)],
    "equal": [(16, 8)] * 5,
    "prompts ten times the answers": [(220, 200), (110, 100)],
    "answers ten times the prompts": [(220, 20), (33, 3)],
    "without any weight": [(9, 9), (4, 4)],
}


def batch(shape: str, loss: str, seed: int = 0) -> list[Datum]:
    """Rows of (length, prompt): weights, or what stands for them, are zero in the prompt."""
    rng = np.random.default_rng(seed)
    return [row(rng, length, prompt, loss) for length, prompt in SHAPES[shape]]


def row(rng: np.random.Generator, length: int, prompt: int, loss: str) -> Datum:
    answer = np.arange(length) >= prompt
    inputs = {
        "weights": answer * rng.uniform(0.1, 1, length),
        "advantages": answer * rng.normal(0, 1, length),
        "logprobs": rng.normal(-8, 1, length),
    }
    used = {name: inputs[name].astype(np.float32) for name in LOSSES[loss].inputs}
    return Datum(rng.integers(0, VOCABULARY, length), {"target_tokens": rng.integers(0, VOCABULARY, length), **used})


def reference_logprobs(model: peft.PeftModel, datum: Datum) -> torch.Tensor:
    """[T], from the full logits of one row at a time: no padding, no packing, no blocks."""
    logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
    return logits.log_softmax(-1).gather(1, torch.from_numpy(datum.inputs["target_tokens"])[:, None])[:, 0]


def reference_loss(name: str, logprobs: torch.Tensor, datum: Datum) -> torch.Tensor:
    inputs = {key: torch.from_numpy(value) for key, value in datum.inputs.items()}
    if name == "cross_entropy":
        return -(logprobs * inputs["weights"]).sum()
    advantages, old = inputs["advantages"], inputs["logprobs"]
    ratio = torch.exp(logprobs - old)
    clipped = torch.clip(ratio, 0.8, 1.2)
    return {
        "importance_sampling": -(ratio * advantages).sum(),
        "ppo": -torch.min(ratio * advantages, clipped * advantages).sum(),
        "cispo": -(clipped.detach() * logprobs * advantages).sum(),
        "dro": -(logprobs * advantages - 0.025 * (logprobs - old) ** 2).sum(),
    }[name]


def check(engine: Engine, adapter, model: peft.PeftModel, data: list[Datum], loss: str) -> None:
    ours = gradient(engine, adapter, data, loss)
    model.zero_grad()
    logprobs = [reference_logprobs(model, datum) for datum in data]
    total = torch.stack([reference_loss(loss, *pair) for pair in zip(logprobs, data, strict=True)]).sum()
    total.backward()
    assert ours.loss == pytest.approx(total.item(), rel=1e-4, abs=1e-4)
    for mine, theirs in zip(ours.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=1e-4)
    parameters = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert parameters.keys() == adapter._parameters.keys()
    scale = max(parameter.grad.abs().max().item() for parameter in parameters.values())
    for name, parameter in adapter._parameters.items():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-4, atol=1e-4 * max(scale, 1))


def gradient(engine: Engine, adapter, data: list[Datum], loss: str) -> LossOutput:
    options = LOSSES[loss].options
    with engine._activated(adapter):
        adapter.prepare_gradient()
        adapter.clear_gradient()
        return compute(engine._network(adapter), data, LOSSES[loss], options, backward=True)


def test_the_architecture_decides_which_decoder_is_used(engine: Engine, directory: Path) -> None:
    assert type(engine.base.decoder) is FAMILIES[directory.name]


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_every_shape_equal_plain_transformers_and_peft(engine, directory, adapter, tmp_path, shape) -> None:
    check(
        engine,
        adapter,
        reference(engine, directory, tmp_path / "adapter"),
        batch(shape, "cross_entropy"),
        "cross_entropy",
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_equals_its_formula_on_plain_transformers_and_peft(
    engine, directory, adapter, tmp_path, loss
) -> None:
    model = reference(engine, directory, tmp_path / "adapter")
    check(engine, adapter, model, batch("mixed, with single tokens and a row without weights", loss), loss)


@pytest.mark.parametrize("modules", [("q_proj",), ("v_proj", "down_proj"), ("lm_head",), (*PROJECTIONS, "lm_head")])
def test_any_choice_of_modules(engine, directory, tmp_path, modules: tuple[str, ...]) -> None:
    engine.create("model", spec(directory, tuple(sorted(modules))))
    chosen = engine._models["model"]
    chosen._weights.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    model = reference(engine, directory, tmp_path / "adapter")
    check(engine, chosen, model, batch("equal", "cross_entropy"), "cross_entropy")
    engine.unload("model")


def test_several_targets_a_position(engine, adapter) -> None:
    """[T, K] targets give what K rows with one target each give, for log-probabilities, loss and gradient."""
    rng = np.random.default_rng(3)
    targets, weights = rng.integers(0, VOCABULARY, (9, 3)), rng.uniform(0, 1, (9, 3)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, 9)
    wide = gradient(engine, adapter, [Datum(tokens, {"target_tokens": targets, "weights": weights})], "cross_entropy")
    expected = adapter._gradient.clone()
    columns = [Datum(tokens, {"target_tokens": targets[:, k], "weights": weights[:, k]}) for k in range(3)]
    narrow = gradient(engine, adapter, columns, "cross_entropy")
    np.testing.assert_allclose(wide.logprobs[0], np.stack(narrow.logprobs, 1), atol=1e-5)
    assert wide.loss == pytest.approx(narrow.loss, rel=1e-5)
    torch.testing.assert_close(adapter._gradient, expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_losses_and_gradients_are_those_of_float32_to_its_precision(engine, directory, adapter) -> None:
    narrow = Engine(Base(str(directory), "cpu", "bfloat16"))
    narrow.create("model", spec(directory))
    other = narrow._models["model"]
    assert other._weights.dtype == torch.float32
    other._weights.data.copy_(adapter._weights.data)
    data = batch("mixed, with single tokens and a row without weights", "cross_entropy")
    expected = gradient(engine, adapter, data, "cross_entropy")
    found = gradient(narrow, other, data, "cross_entropy")
    assert found.loss == pytest.approx(expected.loss, rel=0.01)
    cosine = torch.cosine_similarity(other._gradient, adapter._gradient, dim=0).item()
    assert cosine > 0.99


def test_an_evaluation_equals_training_without_dropout(engine, adapter) -> None:
    data = batch("mixed, with single tokens and a row without weights", "cross_entropy")
    trained = gradient(engine, adapter, data, "cross_entropy")
    with engine._activated(adapter):
        evaluated = compute(engine._network(adapter), data, LOSSES["cross_entropy"], {}, backward=False)
    assert evaluated.loss == pytest.approx(trained.loss, rel=1e-6)
    for ours, theirs in zip(evaluated.logprobs, trained.logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_logit_far_above_those_of_the_first_block() -> None:
    """exp overflows beyond 88 in float32: what is shifted by the first block's largest logit has to notice."""
    weight = torch.zeros(2 * BLOCK_VOCABULARY, 2)
    weight[-1] = torch.tensor([500.0, 0.0])
    weight[-2] = torch.tensor([500.0, 1.0])
    hidden, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[2 * BLOCK_VOCABULARY - 1]])
    logprobs, found = FrozenHead(weight).differentiate(hidden, targets, torch.ones_like)
    # The last two tokens share all of the probability.
    assert logprobs.item() == pytest.approx(-np.log(2), abs=1e-4)
    torch.testing.assert_close(found, torch.tensor([[0.0, -0.5]]))


def test_the_gradient_under_dropout_is_the_slope_of_the_loss_with_the_same_masks(engine, directory) -> None:
    if not engine.base.decoder.packed:
        pytest.skip("peft's own dropout")
    engine.create("model", spec(directory, dropout=0.3))
    adapter = engine._models["model"]
    adapter._weights.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    start = adapter._weights.data.clone()
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    data = batch("mixed, with single tokens and a row without weights", "cross_entropy")

    def loss(step: float) -> float:
        adapter._weights.data.copy_(start + step * direction)
        adapter.prepare_gradient()
        adapter.clear_gradient()
        network = engine._network(adapter, Masks(7, 0.3, engine.base.device))
        return compute(network, data, LOSSES["cross_entropy"], {}, backward=True).loss

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert loss(0) != pytest.approx(gradient(engine, adapter, data, "cross_entropy").loss, rel=1e-3)
    loss(0)
    assert (adapter._gradient * direction).sum().item() == pytest.approx(slope, rel=0.02)
    engine.unload("model")


def test_masks_drop_at_their_rate_and_follow_their_seed_alone() -> None:
    masks = Masks(11, 0.05, torch.device("cpu"))
    drawn = [masks.mask(masks.draw(1000, 1001), torch.float32) for _ in range(3)]
    for mask in drawn:
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        # Five standard deviations of a mean over a million draws.
        assert mask.mean().item() == pytest.approx(0.95, abs=5 * (0.05 * 0.95 / 1e6) ** 0.5)
        assert mask.mean().item() * masks.gain == pytest.approx(1, abs=2e-3)
    # Two masks agree where both keep or both drop: 0.95² + 0.05² of all elements if they are independent.
    assert (drawn[0] == drawn[1]).float().mean().item() == pytest.approx(0.905, abs=2e-3)
    again = Masks(11, 0.05, torch.device("cpu"))
    assert all(torch.equal(again.mask(again.draw(1000, 1001), torch.float32), mask) for mask in drawn)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"attention_bias": True}, {"attention_dropout": 0.1}])
def test_what_the_packed_decoder_leaves_out_it_does_not_claim(change: dict[str, object]) -> None:
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SIZES, "num_hidden_layers": 1}, **change))
    assert not supports(model)
