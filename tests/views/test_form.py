"""The form: untouched it changes nothing, touched it says at once what follows."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from tinker_utils.batching import Example
from tinker_utils.config.rules import rules_of
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.data.rendering import RenderedSet
from tinker_utils.errors import ConfigError
from tinker_utils.plan.estimate import DataLengths
from tinker_utils.run.directory import RunDirectory
from tinker_utils.views.form import config_form


def rendered(count, length):
    example = Example(np.zeros(length + 1, np.int32), np.ones(length, np.float32))
    return RenderedSet((example,) * count)


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(
        model="Qwen/Qwen3-8B",
        data_dir=tmp_path,
        learning_rate=1.7e-4,
        warmup_ratio=0.1,
        lora=LoraConfig(target_modules=("q_proj",)),
        base_dir=tmp_path,
    )


def plan_of(train):
    return SimpleNamespace(lengths=DataLengths.of(train, [rendered(10, 100)], 2048))


@pytest.fixture
def plan():
    return plan_of(rendered(1000, 500))


def control(form, name):
    """The input of that name, wherever it stands."""

    def find(widget):
        if getattr(widget, "description", None) == name:
            yield widget
        for child in getattr(widget, "children", ()):
            yield from find(child)

    (found,) = find(form)
    return found


def said(form):
    """Return what stands beside the settings, as text."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", form.children[1].value)).strip()


def test_untouched_it_gives_back_its_configuration(config, plan):
    form = config_form(config, plan)
    assert form.config == config
    assert form.config.base_dir == config.base_dir


def test_a_rank_that_the_service_refuses_or_that_is_ample_is_told_at_once(config, plan):
    form = config_form(config, plan)
    assert "rank" not in said(form).lower()
    control(form, "rank").value = 48
    assert "lora.rank: the hosted service takes powers of two, received 48; choose 32 or 64." in said(form)
    control(form, "rank").value = 64
    assert "powers of two" not in said(form)
    assert "Rank 64 has room to memorize 1,000 examples" in said(form)
    # One matrix of Qwen3-8B, and with it all of the attention: 958,464 parameters for each rank.
    plan.lengths = plan_of(rendered(1000, 10**6)).lengths
    form = config_form(config, plan)
    assert "it has 15.3 M LoRA parameters for 1 G completion tokens; even 1,024 has fewer." in said(form)
    control(form, "rank").value = 1024
    assert "memorize" not in said(form)


def test_its_text_is_the_same_for_every_configuration(config, plan):
    assert repr(config_form(config, plan)) == repr(config_form(TrainingConfig())) == "ConfigForm()"


def test_what_is_changed_is_in_the_configuration_and_nothing_else(config, plan):
    form = config_form(config, plan)
    control(form, "rank").value = 8
    control(form, "epochs").value = 1
    control(form, "lr_schedule").value = "cosine"
    control(form, "eval_at_epoch_end").value = False
    assert form.config == dataclasses.replace(
        config,
        lora=LoraConfig(rank=8, target_modules=("q_proj",)),
        epochs=1,
        lr_schedule="cosine",
        eval_at_epoch_end=False,
    )


def test_what_follows_is_said_at_once(config, plan):
    form = config_form(config, plan)
    assert "examples 1,000 steps 500 250 an epoch warm-up 50 steps evaluations 2 tokens 1 M trained on" in said(form)
    # 1,000,000 tokens and two evaluations of 1,000 tokens, at 0.44 dollars a million.
    assert "cost $0.44" in said(form)
    control(form, "epochs").value = 4
    assert "steps 1,000" in said(form)
    assert "cost $0.88" in said(form)
    control(form, "rank").value = 128
    assert "Rank 128 has room to memorize" in said(form)


def test_a_budget_of_0_is_none(config, plan):
    form = config_form(dataclasses.replace(config, budget_usd=5.0), plan)
    assert form.config.budget_usd == 5.0
    control(form, "budget_usd").value = 0
    assert form.config.budget_usd is None
    control(form, "budget_usd").value = 0.25
    assert form.config.budget_usd == 0.25
    assert "the run stops before its cost exceeds $0.25" in said(form)


def test_what_is_not_allowed_stays_with_a_sentence_and_the_figures_are_those_without_it(config, plan):
    form = config_form(config, plan)
    control(form, "rank").value = 5000
    control(form, "batch_size").value = 2.5
    control(form, "epochs").value = 4
    assert control(form, "rank").value == 5000
    assert "lora.rank: expected an integer, from 1 up to 1,024, received 5000" in said(form)
    assert "training.batch_size: expected an integer, from 1 up to 65,536, received 2.5" in said(form)
    assert "steps 1,000 250 an epoch" in said(form)
    with pytest.raises(ConfigError, match=r"lora\.rank.*training\.batch_size"):
        _ = form.config
    control(form, "rank").value, control(form, "batch_size").value = 8, 2
    assert (form.config.lora.rank, form.config.batch_size, form.config.epochs) == (8, 2, 4)
    assert control(form, "lr_schedule").options == rules_of(TrainingConfig)["lr_schedule"].choices


@pytest.mark.parametrize(
    ("name", "value", "caution"),
    [
        ("learning_rate", 1.0, "training.learning_rate = 1 is outside the usual range, 1e-06 to 0.005"),
        ("dropout", 0.99, "lora.dropout = 0.99 is outside the usual range, 0 to 0.5"),
        ("epochs", 1000, "training.epochs = 1000 is outside the usual range, 1 to 20"),
        ("alpha", 4096, "lora.alpha = 4096 is outside the usual range"),
        ("warmup_ratio", 0.9, "training.warmup_ratio = 0.9 is outside the usual range"),
        ("early_stopping_threshold", 100, "training.early_stopping_threshold = 100 is outside the usual range"),
        ("max_seq_length", 2, "1,000 of 1,000 examples keep no answer within 2 tokens, and are skipped."),
        ("batch_size", 1000, "A step takes in all 1,000 examples"),
    ],
)
def test_what_is_likely_to_do_harm_is_said(config, name, value, caution):
    example = Example(np.zeros(501, np.int32), np.repeat(np.float32([0, 1]), [100, 400]))
    form = config_form(config, plan_of(RenderedSet((example,) * 1000)))
    assert caution not in said(form)
    control(form, name).value = value
    assert caution in said(form)


def test_while_a_run_trains_here_it_says_that_it_is_about_the_next_one(config, plan, tmp_path):
    form = config_form(config, plan)
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        control(form, "epochs").value = 4
        assert "A run is training: what is changed here is for the next one." in said(form)
        assert "steps 1,000" in said(form)
    control(form, "epochs").value = 5
    assert "A run is training" not in said(form)


def test_a_value_at_an_open_bound_is_an_error_that_names_the_key(config, plan):
    form = config_form(config, plan)
    control(form, "learning_rate").value = 0
    assert "training.learning_rate: expected a number, above 0 up to 1" in said(form)
    assert 'role="alert"' in form.children[1].value
    with pytest.raises(ConfigError, match="training.learning_rate"):
        _ = form.config
    control(form, "learning_rate").value = 1e-4
    assert form.config.learning_rate == 1e-4


def test_without_a_plan_it_estimates(config, tmp_path):
    (tmp_path / "train.jsonl").write_text(("x" * 2000 + "\n") * 8)
    form = config_form(config)
    assert "examples 8 steps 4" in said(form)
    assert "tokens about 8,000" in said(form)


def test_without_data_it_says_so(config):
    assert "train.jsonl: cannot be read" in said(config_form(config))


def test_each_setting_has_a_sentence_with_its_bounds(config, plan):
    def texts(widget):
        yield str(getattr(widget, "value", ""))
        for child in getattr(widget, "children", ()):
            yield from texts(child)

    text = " ".join(texts(config_form(config, plan)))
    assert "16 is enough for most tasks. <i>(from 1 up to 1,024)</i>" in text
    assert "2.0e-4 is a good start for LoRA. <i>(above 0 up to 1)</i>" in text
    assert "0 switches early stopping off. <i>(at least 0)</i>" in text
