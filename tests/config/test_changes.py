"""Every setting is one that a resumed run can take up or one that it cannot; all are listed: none is forgotten."""

from __future__ import annotations

import pytest

from tinker_utils.config.changes import SettingChange, setting_changes
from tinker_utils.config.settings import RULES, TrainingConfig

# Another value for each setting; what stands in the first table decides what is learned.
REFUSED = {
    "service": "tinker",
    "model": "other/model",
    "lora.rank": 8,
    "lora.alpha": 64,
    "lora.dropout": 0.5,
    "lora.target_modules": ["q_proj"],
    "training.batch_size": 8,
    "training.learning_rate": 1e-5,
    "training.lr_schedule": "cosine",
    "training.warmup_ratio": 0.5,
    "training.weight_decay": 0.1,
    "training.grad_clip_norm": 1.0,
    "training.max_seq_length": 64,
    "training.train_on": "all_assistant",
    "training.seed": 7,
    "training.eval_examples": 100,
    "training.monitor": "val_loss/task",
}
TAKEN_UP = {
    "training.epochs": 3,
    "training.log_interval_steps": 3,
    "training.checkpoint_interval_steps": 3,
    "training.eval_interval_steps": 3,
    "training.eval_at_epoch_end": False,
    "training.eval_at_start": False,
    "training.checkpoint_ttl_seconds": 3600,
    "training.resume_from_checkpoint": False,
    "training.early_stopping_patience": 3,
    "training.early_stopping_threshold": 0.5,
    "training.early_stopping_significance": 2.0,
    "training.samples_at_evaluation": 3,
    "training.steps_in_flight": 3,
    "training.budget_usd": 3.0,
    "training.resume_warmup_steps": 3,
    "training.on_nonfinite": "skip",
    "training.service_timeout_s": 60,
    "data.dir": "elsewhere",
    "data.train": "elsewhere.parquet",
    "data.valid": "org/name:test",
    "data.valid_fraction": 0.1,
    "data.revision": "v1",
    "data.format": "alpaca",
    "data.columns": {"prompt": "question"},
    "data.template": "elsewhere.jinja",
    "data.template_arguments": {"enable_thinking": False},
    "data.escape_special": True,
    "data.max_skipped_share": 0.5,
    "output.dir": "elsewhere",
    "service_key_env": "OTHER_KEY",
}
CONFIG = TrainingConfig(service="local")


def test_every_setting_is_in_one_of_the_two_tables():
    assert REFUSED.keys() | TAKEN_UP.keys() == CONFIG.to_flat_dict().keys()
    assert not REFUSED.keys() & TAKEN_UP.keys()
    assert TAKEN_UP.keys() == {key for key, rule in RULES.items() if rule.resumable}


@pytest.mark.parametrize(("key", "value"), [*REFUSED.items(), *TAKEN_UP.items()])
def test_a_change_is_found_and_sorted(key, value):
    (change,) = setting_changes(CONFIG, CONFIG.with_overrides({key: value}))
    assert (change.key, change.harmless) == (key, key in TAKEN_UP)
    assert change.old == CONFIG.resolved().to_flat_dict()[key]


def test_the_order_of_validation_sets_is_a_change_as_the_first_is_watched():
    one, other = (CONFIG.with_overrides({"data.valid": sets}) for sets in ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}))
    (change,) = setting_changes(one, other)
    assert str(change).startswith("data.valid: {a: ")


def test_nothing_changed_is_no_change():
    assert setting_changes(CONFIG, TrainingConfig(service="local")) == []


def test_a_server_of_ones_own_may_move_but_not_become_another_kind():
    here, there = "http://127.0.0.1:8000", "http://127.0.0.1:9000"
    assert SettingChange("service", here, there).harmless
    for old, new in ((here, "tinker"), ("local", here), ("tinker", "local")):
        assert not SettingChange("service", old, new).harmless


def test_a_change_reads_as_it_is_written_in_yaml():
    assert str(SettingChange("training.epochs", 1, 2)) == "training.epochs: 1 → 2"
    assert str(SettingChange("training.budget_usd", None, 2.5)) == "training.budget_usd: null → 2.5"
    assert str(SettingChange("training.eval_at_epoch_end", True, False)) == "training.eval_at_epoch_end: true → false"
    assert str(SettingChange("lora.target_modules", ["q_proj"], ["q_proj", "v_proj"])) == (
        "lora.target_modules: [q_proj] → [q_proj, v_proj]"
    )
