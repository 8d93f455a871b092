"""Several sources and several validation sets: shares, losses and stops, recomputed apart from the run."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.small_runs import SAMPLE, history, records

from tinker_utils.batching import Batch, Example, in_batches
from tinker_utils.errors import ConfigError, DataError, ResumeError
from tinker_utils.plan.preparing import prepare
from tinker_utils.plan.validation import text_bytes
from tinker_utils.run.directory import RunDirectory
from tinker_utils.training.checks import preflight
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Four files: two to train on, two to validate on."""
    directory = tmp_path_factory.mktemp("sets")
    lines = (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (
        ("web", lines[:20]), ("code", lines[20:32]), ("task", lines[40:47]), ("general", lines[60:69]),
    ):  # fmt: skip
        (directory / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return directory


@pytest.fixture
def mixed(config, sets):
    """Nine conversations of each of two sources an epoch, two validation sets, the second of them watched."""
    return dataclasses.replace(
        config,
        train=[
            {"path": str(sets / "web.jsonl"), "weight": 3, "limit": 9},
            {"path": str(sets / "code.jsonl"), "weight": 3},
        ],
        valid={"task": str(sets / "task.jsonl"), "general": str(sets / "general.jsonl")},
        monitor="val_loss/general",
        eval_at_start=True,
        log_interval_steps=1,
    )


def nats(model, batches):
    return [total for loss in model.submit_evaluation(batches).result() for total in loss.totals]


async def test_losses_of_sources_and_sets_are_those_of_their_own_tokens(mixed, service, run):
    await fit(mixed, run.path, service=service)
    plan = prepare(mixed)
    assert (plan.sources, plan.watched) == (("web", "code"), "general")
    for epoch in (1, 2):
        drawn = plan.batches.mixture.source_of(plan.batches.order(epoch))
        assert Counter(drawn.tolist()) == {0: 9, 1: 9}
    for record in records(run, "train"):
        batch, of = plan.batches.batch(record["step"]), {0: "web", 1: "code"}
        tokens = Counter()
        for source, example in zip(batch.sources, batch.data, strict=True):
            tokens[of[source]] += example.completion_tokens
        assert {name: record[f"completion_tokens/{name}"] for name in tokens} == tokens
        parts = [record[f"train_loss/{name}"] * count for name, count in tokens.items()]
        assert sum(parts) == pytest.approx(record["train_loss_total"])
    vals = records(run, "val")
    assert [(each["step"], each["set"]) for each in vals[:4]] == [
        (0, "general"),
        (0, "task"),
        (2, "general"),
        (2, "task"),
    ]
    assert all(("is_best" in each) == (each["set"] == "general") for each in vals)
    # The best checkpoint, evaluated anew on each set by itself.
    state = run.read_state()
    best = state.progress.best_step
    model = service.restored_model(state.best_checkpoint, mixed)
    for name, rendered in plan.sets.items():
        (record,) = (each for each in vals if (each["step"], each["set"]) == (best, name))
        totals = nats(model, list(in_batches(rendered.examples, 4)))
        weights = [example.completion_tokens for example in rendered.examples]
        assert record["val_loss"] == pytest.approx(sum(totals) / sum(weights), rel=1e-6)
        rate = sum(totals) / sum(weights)
        spread = sum((y - rate * x) ** 2 for y, x in zip(totals, weights, strict=True))
        m = len(weights)
        assert record["val_loss_stderr"] == pytest.approx(math.sqrt(m / (m - 1) * spread) / sum(weights), rel=1e-4)
    # … the lowest of the watched set's, step 0 left out.
    watched = {each["step"]: each["val_loss"] for each in vals if each["set"] == "general" and each["step"]}
    assert best == min(watched, key=watched.__getitem__)


async def test_bits_per_byte_are_of_the_text_alone(mixed, service, run):
    await fit(dataclasses.replace(mixed, epochs=1), run.path, service=service)
    plan, state = prepare(mixed), run.read_state()
    (record,) = (r for r in records(run, "val") if (r["step"], r["set"]) == (state.progress.best_step, "general"))
    examples = plan.sets["general"].examples
    rows = service.restored_model(state.best_checkpoint, mixed).submit_logprobs([Batch(examples)]).result()
    total, size = 0.0, 0
    lines = map(json.loads, Path(mixed.valid["general"]).read_text(encoding="utf-8").splitlines())
    for example, row, line in zip(examples, rows, lines, strict=True):
        end = plan.tokenizer.convert_tokens_to_ids("<|im_end|>")
        text = (example.weights > 0) & (example.target_tokens != end)
        assert text.sum() == example.completion_tokens - 1
        total -= float(np.asarray(row)[text].sum())
        size += len(line["messages"][-1]["content"].encode())
    assert record["val_bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_bytes_are_those_of_the_text_whatever_the_tokenizer_makes_of_spaces(mixed):
    plan = prepare(mixed)
    tokenizer = copy.deepcopy(plan.tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    tokens = np.array([0, *tokenizer("Who , me ? Ünd .", add_special_tokens=False)["input_ids"]], np.int32)
    example = Example(tokens, (np.arange(len(tokens) - 1) >= 0).astype(np.float32))
    assert len(tokenizer.decode(tokens[1:].tolist())) < 16, "it does"
    assert text_bytes((example,), tokenizer) == 17


async def test_a_run_of_a_mixture_goes_on_bit_for_bit(mixed, service, run, tmp_path):
    await fit(mixed, tmp_path / "whole", service=service)
    stopping = run.request_stop

    def stop(record):
        if record["type"] == "train" and record["step"] in (3, 7):
            stopping()

    for _ in range(3):
        result = await fit(mixed, run.path, service=service, on_record=stop)
    assert result.status == "completed"
    kinds = ("train", "val", "early_stop")
    resumed, whole = (
        [each for each in history(of) if each["type"] in kinds] for of in (run, RunDirectory(tmp_path / "whole"))
    )
    assert resumed == whole
    with pytest.raises(
        ResumeError, match=r"changed: data.train: \[\{path: .*limit: 9\}, .* → \[\{path: .*limit: 8\}, "
    ):
        other = [dict(mixed.train[0], limit=8), mixed.train[1]]
        await fit(dataclasses.replace(mixed, epochs=3, train=other), run.path, service=service)
    with pytest.raises(ResumeError, match=r"training.monitor: val_loss/general → val_loss/task"):
        await fit(dataclasses.replace(mixed, epochs=3, monitor="val_loss/task"), run.path, service=service)


async def test_the_watched_set_stops_the_run_and_no_other(mixed, service, run):
    """With a threshold that none passes, patience ends it at the third evaluation, whatever the other set does."""
    stopping = dataclasses.replace(mixed, early_stopping_patience=2, early_stopping_threshold=50.0)
    result = await fit(stopping, run.path, service=service)
    assert (result.status, result.steps) == ("early_stopped", 5), "after steps 2, 4 and 5, the end of the epoch"
    (stop,) = records(run, "early_stop")
    assert stop["monitor"] == "val_loss/general"
    losses = {each["step"]: each["val_loss"] for each in records(run, "val") if each["set"] == "general"}
    assert stop["best_val_loss"] == min(loss for step, loss in losses.items() if step) == result.best_val_loss
    assert result.start_val_loss == losses[0]


async def test_a_part_is_evaluated_each_time_and_all_of_it_at_the_ends_of_epochs(mixed, service, run):
    part = dataclasses.replace(mixed, eval_examples=4, epochs=1)
    await fit(part, run.path, service=service)
    plan, vals = prepare(part), records(run, "val")
    found = [(each["step"], each["set"]) for each in vals]
    assert found == [
        (0, "general"), (0, "task"), (2, "general"), (2, "task"), (4, "general"), (4, "task"),
        (5, "general"), (5, "task"), (5, "general/whole"), (5, "task/whole"),
    ]  # fmt: skip
    tokens = {(each["set"], each["completion_tokens"]) for each in vals}
    assert len(tokens) == 4, "the same part each time"
    (caution,) = (
        each["message"] for each in records(run, "notice") if each["message"].startswith("validation, general")
    )
    assert caution.endswith("4 examples are too few to say how well the loss is known; raise training.eval_examples.")
    for name, rendered in plan.sets.items():
        assert (f"{name}/whole", rendered.completion_tokens) in tokens
    evaluated = sum(look.tokens for step in (0, 2, 4, 5) for look in plan.looks(step))
    spent = run.read_state().spent
    assert (spent.eval_tokens, spent.evaluations) == (evaluated, 4)
    assert plan.forecast.eval_tokens == evaluated
    assert plan.forecast.tokens == spent.tokens, "the very conversations that the epochs draw are counted"


async def test_the_base_model_is_evaluated_once_and_counts_for_no_patience(config, service, run):
    start = dataclasses.replace(config, eval_at_start=True, samples_at_evaluation=1, epochs=1)
    before = await fit(start, run.path, service=service)
    assert [each["step"] for each in records(run, "val")] == [0, 2, 4, 6]
    assert [json.loads(line)["step"] for line in run.samples.read_text().splitlines()] == [0, 2, 4, 6]
    assert not [each for each in records(run, "checkpoint") if each["step"] == 0]
    result = await fit(dataclasses.replace(start, epochs=2), run.path, service=service)
    assert [each["step"] for each in records(run, "val")].count(0) == 1
    assert result.start_val_loss == before.start_val_loss == records(run, "val")[0]["val_loss"]
    assert "worse" not in result.reason


async def test_a_run_that_is_cut_off_before_its_first_checkpoint_has_one_sample_of_the_base_model(config, service, run):
    start = dataclasses.replace(config, eval_at_start=True, samples_at_evaluation=1, epochs=1)
    await fit(start, run.path, service=service)
    # As a kill behind the evaluation of the base model leaves it.
    run.samples.write_text(run.samples.read_text().splitlines(keepends=True)[0])
    run.write_state(msgspec.structs.replace(run.read_state(), status="running", resume_points=[], models=[]))
    await fit(start, run.path, service=service)
    assert [json.loads(line)["step"] for line in run.samples.read_text().splitlines()] == [0, 2, 4, 6]
    assert [each["step"] for each in records(run, "val")] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": []}, "data.train: expected a name, or a list"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "some sources have a weight and some have none"),
        ({"train": [{"path": "a", "weight": 0}]}, "data.train, source 1, weight: expected a number, above 0"),
        ({"train": [{"path": "a", "limit": 1.5}]}, "data.train, source 1, limit: expected an integer"),
        ({"train": [{"path": "a", "share": 1}]}, "data.train, source 1: there is no 'share'"),
        ({"train": [{"weight": 1}]}, "data.train, source 1: expected a name"),
        ({"train": "https://example.com/a.jsonl"}, "data.train: expected a name, or a list of .* received 'https://"),
        ({"train": ["s3://bucket/a.jsonl"]}, "data.train, source 1: expected a name"),
        ({"valid": {"a": "hf://datasets/a/b"}}, "data.valid: expected a name, or names of sets"),
        ({"valid": {}}, "data.valid: expected a name, or names of sets"),
        ({"valid": {"whole": "a"}}, "data.valid: expected a name, or names of sets"),
        ({"valid": {"a/b": "a"}}, "data.valid: expected a name, or names of sets"),
        ({"monitor": "train_loss"}, "training.monitor: expected val_loss, or val_loss/SET"),
        ({"eval_examples": 1}, "training.eval_examples: expected an integer, from 2"),
    ],
)
def test_what_is_not_allowed_is_said_with_its_key(config, changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(config, **changes)


def test_sets_and_weights_that_do_not_fit_the_data_are_refused(mixed, tmp_path):
    with pytest.raises(ConfigError, match="no val_loss/other; the validation data have val_loss/task and val_loss/gen"):
        prepare(dataclasses.replace(mixed, monitor="val_loss/other"))
    with pytest.raises(ConfigError, match=r"code.jsonl has the weight 1e-06, which is none of the"):
        prepare(dataclasses.replace(mixed, train=[mixed.train[0], dict(mixed.train[1], weight=1e-6)]))
    silent = tmp_path / "silent.jsonl"
    silent.write_text('{"messages": [{"role": "user", "content": "Nobody answers."}]}\n')
    with pytest.raises(DataError, match=r"silent.jsonl: has no conversation that can be trained on .* leave the"):
        prepare(dataclasses.replace(mixed, train=[{"path": str(silent)}, {"path": mixed.train[1]["path"]}]))
    with pytest.raises(DataError, match="data.valid: expected a file"):
        prepare(dataclasses.replace(mixed, valid={"a": "missing.jsonl"}))
    shares = "An epoch takes these conversations: 9 of 20 of web (50.0%), 9 of 12 of code (50.0%)."
    assert [check.sentence for check in preflight(mixed).checks if check.name == "mixture"] == [shares]
    plan = prepare(mixed)
    assert shares in plan.summary()
    drawn = sum(plan.batches.batch(step).completion_tokens for step in range(1, plan.total_steps + 1)) / mixed.epochs
    assert plan.forecast.completion_tokens == round(drawn), "what the adapter has to learn in an epoch"
    assert plan.train.completion_tokens > 1.5 * drawn
    (adapter,) = (check.sentence for check in preflight(mixed).checks if check.name == "adapter")
    assert adapter.endswith(f" for about {plan.forecast.completion_tokens:,} completion tokens.")
    report = preflight(dataclasses.replace(mixed, monitor="val_loss/other"))
    assert [check.status for check in report.checks if "val_loss/other" in check.sentence] == ["fail"]


def test_what_is_read_several_times_is_counted_over_all_conversations_and_not_called_an_epoch(mixed, tmp_path):
    (tmp_path / "last.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role != 'assistant' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [{"role": role, "content": "Once."} for role in ("user", "assistant") * 2]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * (2 if name == "a" else 8))
    train = [{"path": str(tmp_path / f"{name}.jsonl"), "weight": 1} for name in ("a", "b")]
    settings = dataclasses.replace(mixed, train=train, train_on="all_assistant", template=str(tmp_path / "last.jinja"))
    (sentence,) = (check.sentence for check in preflight(settings).checks if check.name == "lengths")
    long, short = (example.token_count for example in prepare(settings).train.by_conversation[0][::-1])
    assert sentence.endswith(f": all of them once are {10 * (long + short):,} tokens instead of {10 * long:,}.")
