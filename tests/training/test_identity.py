"""A run goes on with the very tokens that it began with, or says what has changed."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tinker_utils
from tinker_utils.batching import Example
from tinker_utils.errors import ResumeError
from tinker_utils.loss import pool
from tinker_utils.plan.preparing import prepare
from tinker_utils.plan.validation import Look
from tinker_utils.service.model import BatchLoss
from tinker_utils.training.checks import preflight
from tinker_utils.training.recorder import _evaluation
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")
OWN = (Path(tinker_utils.__file__).parent / "local" / "base_model" / "chat_template.jinja").read_text()
DATED = "{{ strftime_now('%Y') }}" + OWN


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(OWN)
    return path


@pytest.fixture
def short(config, template):
    return dataclasses.replace(config, epochs=1, template=str(template), early_stopping_patience=0)


async def test_a_run_does_not_go_on_with_another_template(short, service, run, template):
    await fit(short, run.path, service=service)
    before = run.read_state().rendering["chat template"]
    template.write_text("You are a pirate. " + OWN)
    now = prepare(short).renderer.rendering["chat template"]
    more = dataclasses.replace(short, epochs=2)
    with pytest.raises(ResumeError, match=rf"changed: the chat template: {before} → {now}\. Undo") as caught:
        await fit(more, run.path, service=service)
    (check,) = (check for check in preflight(more, run.path).checks if check.name == "directory")
    assert (check.status, check.sentence) == ("fail", str(caught.value))
    anew = dataclasses.replace(more, resume_from_checkpoint=False)
    assert (await fit(anew, run.path, service=service)).status == "completed"


async def test_it_goes_on_where_another_template_gives_the_same_tokens(short, service, run, template):
    await fit(short, run.path, service=service)
    template.with_name("other.jinja").write_text("{# a remark #}" + OWN)
    more = dataclasses.replace(short, epochs=2, template=str(template.with_name("other.jinja")))
    assert (await fit(more, run.path, service=service)).status == "completed"


async def test_a_template_that_writes_the_date_keeps_that_of_the_run(short, service, run, template):
    template.write_text(DATED)
    past = prepare(short, date=datetime.date(2023, 5, 6))
    await fit(short, run.path, service=service, preparation=past)
    assert run.read_state().rendering["date in the template"] == "2023-05-06"
    more = dataclasses.replace(short, epochs=2)
    for preparation in (None, prepare(more)):
        assert all(check.status != "fail" for check in preflight(more, run.path, preparation=preparation).checks)
    result = await fit(more, run.path, service=service, preparation=prepare(more))
    assert result.status == "completed"
    assert run.read_state().rendering["date in the template"] == "2023-05-06"


async def test_a_tokenizer_that_has_changed_is_named(short, service, run, tmp_path):
    model = Path(shutil.copytree(Path(tinker_utils.__file__).parent / "local" / "base_model", tmp_path / "model"))
    local = dataclasses.replace(short, service="local", model=str(model))
    plan = prepare(local)
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    (model / "tokenizer.json").write_text(json.dumps(content))
    changed = prepare(local)
    assert plan.renderer.rendering["tokenizer"] != changed.renderer.rendering["tokenizer"]
    assert plan.data_digest != changed.data_digest
    await fit(local, run.path, preparation=plan)
    with pytest.raises(ResumeError, match="the tokenizer: "):
        await fit(dataclasses.replace(local, epochs=2), run.path, preparation=None)


def test_a_run_of_version_0_2_keeps_its_mask(short):
    now, then = prepare(short), prepare(short, as_before=True)
    for new, old in zip(now.train.examples, then.train.examples, strict=True):
        newline = old.tokens[len(new.tokens) :]
        assert now.tokenizer.decode(newline) == "\n"
        assert old.completion_tokens == new.completion_tokens + len(newline)
        assert old.tokens[: len(new.tokens)].tolist() == new.tokens.tolist()


def test_the_unit_of_errors_is_the_conversation():
    examples = [Example(np.arange(n + 1, dtype=np.int32), np.ones(n, np.float32)) for n in (2, 3, 4, 5)]
    look = Look("", tuple(examples), np.array([0, 0, 1, 2]))
    losses = [BatchLoss((1.0, 3.0, 6.0), 10.0, None), BatchLoss((5.0,), 5.0, None)]
    evaluation = _evaluation(look, losses)
    assert evaluation.totals == (4.0, 6.0, 5.0)
    assert evaluation.completion_tokens == (5, 4, 5)
    assert evaluation.pooled == pool([4.0, 6.0, 5.0], [5, 4, 5])
