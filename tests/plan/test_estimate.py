"""What follows from settings and lengths agrees with what `prepare` counts, and warns of what it means."""

import dataclasses

import numpy as np
import pytest

from tinker_utils.batching import BatchPlan, Example, Mixture
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.data.rendering import RenderedSet
from tinker_utils.errors import DataError
from tinker_utils.plan import estimate
from tinker_utils.plan.adapter_size import model_shape
from tinker_utils.plan.cautions import refusals
from tinker_utils.plan.cost import prices_for
from tinker_utils.plan.estimate import DataLengths, SetLengths
from tinker_utils.plan.plan import Plan


def rendered(lengths, limit=10**6, cut=0):
    """Examples whose inputs have these lengths, cut so that they have `limit` tokens with their last target."""
    tokens = [min(length + 1, limit) for length in lengths]
    return RenderedSet(tuple(Example(np.zeros(n, np.int32), np.ones(n - 1, np.float32)) for n in tokens), cut)


def forecast(settings, data):
    return estimate.forecast(settings, data, prices_for(settings.service, settings.model))


def lengths(train=(100,) * 10, valid=(50,) * 4, **other):
    return DataLengths(np.array(train), () if valid is None else (of_set(valid),), **other)


def of_set(lengths):
    return SetLengths(np.array(lengths, dtype=np.int64), np.arange(len(lengths)))


def config(**changes):
    quiet = {"service": "local", "early_stopping_patience": 3, "eval_interval_steps": 2, "batch_size": 4}
    return TrainingConfig(**{**quiet, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 7, "batch_size": 3, "eval_interval_steps": 5},
        {"eval_at_epoch_end": False},
        {"eval_interval_steps": 0, "epochs": 5},
        {"batch_size": 100, "warmup_ratio": 0.5},
        {"service": "tinker", "model": "Qwen/Qwen3-8B"},
        {"service": "tinker", "model": "unknown/model"},
    ],
)
@pytest.mark.parametrize("has_validation", [True, False])
def test_it_counts_what_the_steps_come_to(changes, has_validation):
    settings = config(**changes)
    train = rendered(range(20, 63))
    sets = {"": rendered(range(30, 41))} if has_validation else {}
    plan = BatchPlan(train.by_conversation, settings.batch_size, settings.seed, settings.epochs)
    prices = prices_for(settings.service, settings.model)
    prepared = Plan(settings, None, train, sets, plan, prices)
    follows = forecast(settings, prepared.lengths)
    assert follows.examples == 43
    assert follows.steps == prepared.total_steps
    assert follows.steps_per_epoch == plan.steps_per_epoch
    assert follows.warmup_steps == prepared.forecast.warmup_steps
    steps = range(1, prepared.total_steps + 1)
    assert follows.tokens == sum(plan.batch(step).tokens for step in steps)
    assert follows.evaluations == prepared.forecast.evaluations == sum(map(prepared.evaluates, steps))
    # … and once more, of the base model.
    evaluations = (follows.evaluations + 1) * has_validation
    assert follows.eval_tokens == evaluations * sum(range(30, 41))
    cost = prepared.cost_usd(follows.tokens, follows.eval_tokens, evaluations)
    assert follows.cost_usd == (prices and pytest.approx(cost))


def test_by_hand():
    follows = forecast(config(epochs=3), lengths())
    # Ten examples in batches of four are three steps; of nine steps, 2, 4, 6, 8 and the epoch ends 3 and 9 evaluate.
    assert (follows.steps_per_epoch, follows.steps, follows.evaluations, follows.tokens) == (3, 9, 6, 3000)
    assert follows.warnings == ()


def test_a_shorter_limit_cuts_examples_and_their_tokens():
    follows = forecast(config(max_seq_length=61, epochs=1), lengths(train=(59, 60, 61, 200)))
    assert follows.tokens == 59 + 60 + 60 + 60
    assert "About 2 of 4 examples are longer than 61 tokens, and are cut." in follows.warnings


def test_what_was_cut_when_it_was_counted():
    settings = config(max_seq_length=32)
    data = DataLengths(np.array([20, 31, 31, 31]), (of_set([5]),), cut_at=32, cut=2)
    assert "2 of 4 examples are longer than 32 tokens, and are cut." in forecast(settings, data).warnings
    *_, longer = forecast(dataclasses.replace(settings, max_seq_length=64), data).warnings
    assert longer.startswith("2 longer examples were cut to 32 tokens")
    *_, shorter = forecast(dataclasses.replace(settings, max_seq_length=24), data).warnings
    assert shorter == "3 of 4 examples are longer than 24 tokens, and are cut."


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        ({"lora": LoraConfig(rank=64)}, {}, "Rank 64 has room to memorize 10 examples"),
        ({"service": "tinker", "lora": LoraConfig(rank=48)}, {}, "takes powers of two, received 48; choose 32 or 64."),
        ({"service": "https://example.org", "lora": LoraConfig(rank=3)}, {}, "lora.rank = 3 is no power of two: the"),
        ({"service": "tinker"}, {}, "lora.alpha = 32 and lora.dropout = 0.05 are sent as metadata only"),
        ({"service": "https://example.org"}, {}, "a server other than the embedded one may use its own values"),
        ({}, {"valid": None}, "There are no validation data"),
        ({"eval_interval_steps": 0, "eval_at_epoch_end": False}, {}, "No evaluation is planned"),
        ({"early_stopping_patience": 0}, {}, "Early stopping is off"),
        ({"service": "https://example.org", "budget_usd": 1.0}, {}, "training.budget_usd cannot be applied"),
        ({"service": "tinker", "budget_usd": 0.0001}, {}, "All epochs would cost $0.00; the run stops"),
    ],
)
def test_warnings(changes, data, words):
    assert any(words in sentence for sentence in forecast(config(**changes), lengths(**data)).warnings)


@pytest.mark.parametrize(("service", "ranks"), [("local", (3, 48, 1000)), ("tinker", (1, 2, 64, 1024))])
def test_ranks_that_are_taken(service, ranks):
    for rank in ranks:
        follows = forecast(config(service=service, lora=LoraConfig(rank=rank)), lengths())
        assert not [sentence for sentence in follows.warnings if "power" in sentence]


def test_what_a_rank_is_told_depends_on_where_it_is_sent(monkeypatch):
    settings = config(service="tinker", lora=LoraConfig(rank=1000))
    refusal = "lora.rank: the hosted service takes powers of two, received 1,000; choose 512 or 1,024."
    assert list(refusals(settings)) == [refusal]
    assert [sentence for sentence in forecast(settings, lengths()).warnings if "power" in sentence] == [refusal]
    monkeypatch.setenv("TINKER_BASE_URL", "https://example.org")
    assert list(refusals(settings)) == []
    (caution,) = (sentence for sentence in forecast(settings, lengths()).warnings if "power" in sentence)
    assert caution.endswith("another server may, too; 512 or 1,024 is safe.")


def test_a_rank_is_told_by_what_is_to_be_learned():
    settings = config(service="tinker", model="Qwen/Qwen3-8B", lora=LoraConfig(rank=64))
    data = lengths(completion_tokens=np.array([10**8] * 10))
    follows = estimate.forecast(settings, data, None, shape=model_shape(settings))
    assert "Rank 64 may be too small to learn all of the data" in " ".join(follows.warnings)
    assert "memorize" not in " ".join(follows.warnings)
    assert DataLengths.of(rendered([3, 5]), [], 100).completion_tokens.tolist() == [3, 5]


def test_lengths_are_estimated_from_the_sizes_of_lines(tmp_path):
    (tmp_path / "train.jsonl").write_text("x" * 399 + "\n\n" + "x" * 799 + "\n")
    data = DataLengths.estimate(config(data_dir=tmp_path))
    assert data.train.tolist() == [100, 200]
    assert data.valid == ()
    (tmp_path / "valid.jsonl").write_text("x" * 39 + "\n")
    assert DataLengths.estimate(config(data_dir=tmp_path)).valid[0].tokens.tolist() == [10]
    with pytest.raises(DataError, match="missing"):
        DataLengths.estimate(config(data_dir=tmp_path / "missing"))


def test_no_examples_take_nothing():
    follows = forecast(config(), lengths(train=(), valid=()))
    assert (follows.steps, follows.evaluations, follows.tokens, follows.cost_usd) == (0, 0, 0, 0.0)


def test_tokens_of_a_mixture_are_those_that_its_epochs_draw(monkeypatch):
    train = [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]
    learned = np.array([1, 1, 1, 1, 5, 5])
    data = lengths(train=(10, 20, 30, 40, 5, 5), source_of=np.array([0, 0, 0, 0, 1, 1]), completion_tokens=learned)
    settings = config(train=train, epochs=50)
    follows = forecast(settings, data)
    mixture = Mixture.of([4, 2], [1, 1])
    drawn = [data.train[mixture.order(settings.seed, epoch)] for epoch in range(1, 51)]
    assert (follows.steps_per_epoch, follows.tokens) == (1, sum(int(each.sum()) for each in drawn))
    assert follows.completion_tokens == 2 * 1 + 2 * 5
    # Where that would take long: two of 25 on average, and two of 5, an epoch.
    monkeypatch.setattr(estimate, "_DRAWN", 0)
    assert forecast(settings, data).tokens == 50 * (2 * 25 + 2 * 5)
