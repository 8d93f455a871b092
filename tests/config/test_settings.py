from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tinker_utils.config.loading import dump_config, load_config_from_yaml
from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "configs" / "training.yaml"


@pytest.fixture
def load(tmp_path):
    """Loads a text as a configuration file's section `cloud`."""

    def load_text(text: str, **options) -> TrainingConfig:
        path = tmp_path / "training.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config_from_yaml(path, **options)

    return load_text


def test_the_cloud_section_is_the_one_that_was_asked_for():
    config = load_config_from_yaml(CONFIG)
    assert config == TrainingConfig(
        service="tinker",
        model="Qwen/Qwen3-8B",
        lora=LoraConfig(16, 32, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        epochs=2,
        batch_size=4,
        learning_rate=2.0e-4,
        warmup_ratio=0.03,
        max_seq_length=2048,
        log_interval_steps=10,
        checkpoint_interval_steps=250,
        eval_interval_steps=250,
        eval_at_epoch_end=True,
        checkpoint_ttl_seconds=None,
        resume_from_checkpoint=True,
        early_stopping_patience=5,
        early_stopping_threshold=0.01,
        data_dir=Path("data/training"),
        output_dir=Path("models/adapters/tinker"),
    )


def test_every_setting_in_the_file_has_a_comment_in_one_of_its_sections():
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    cloud = lines[lines.index("cloud:") : lines.index("local:")]
    settings = [line for line in cloud if re.match(r"^ {4,}\w+:", line) or re.match(r"^  (service|model):", line)]
    assert len(settings) == 26
    assert [line for line in settings if "#" not in line] == []


def test_early_stopping_is_off_by_default_and_the_lora_defaults_hold():
    assert TrainingConfig().early_stopping_patience == 0
    assert TrainingConfig().early_stopping_threshold == 0.01
    assert LoraConfig() == LoraConfig(rank=16, alpha=32, dropout=0.05)


@pytest.mark.parametrize("written", ["2e-4", "2E-4", "2.0e-4", "0.0002", "+2e-04"])
def test_numbers_that_pyyaml_reads_as_text_are_numbers(load, written):
    assert load(f"cloud:\n  training:\n    learning_rate: {written}\n").learning_rate == 0.0002


def test_an_integer_with_a_leading_zero_is_decimal(load):
    assert load("cloud: {training: {epochs: 010}}").epochs == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cloud: {training: {learning_rte: 1.0e-4}}", "training.learning_rte.*did you mean training.learning_rate"),
        ("cloud: {learning_rate: 1.0e-4}", "learning_rate: there is no such setting.*training.learning_rate"),
        ("cloud: {traning: {epochs: 1}}", "traning"),
        ("cloud: {lora: {target_modules: [q_prj]}}", "target_modules.*'q_prj'.*did you mean q_proj"),
        ("cloud: {lora: {target_modules: []}}", r"target_modules.*received \[\]"),
        ("cloud: {lora: {target_modules: q_proj}}", "target_modules.*received 'q_proj'"),
        ("cloud: {lora: 16}", "lora: expected settings"),
        ("cloud: {lora: {dropout: 1}}", r"lora.dropout: expected a number, from 0 to below 1, received 1"),
        (
            "cloud: {training: {epochs: two}}",
            r"training.epochs: expected an integer, from 1 up to 1,000, received 'two'",
        ),
        ("cloud: {training: {epochs: '2'}}", "training.epochs.*received '2'"),
        ("cloud: {training: {epochs: 1.5}}", "training.epochs.*received 1.5"),
        ("cloud: {training: {epochs: true}}", "training.epochs.*received True"),
        ("cloud: {training: {epochs: 0}}", "training.epochs.*received 0"),
        ("cloud: {training: {epochs: null}}", "training.epochs.*received None"),
        ("cloud: {training: {learning_rate: 0}}", r"training.learning_rate.*above 0 up to 1"),
        ("cloud: {training: {learning_rate: .nan}}", "training.learning_rate.*received nan"),
        ("cloud: {training: {learning_rate: .inf}}", "training.learning_rate.*received inf"),
        (
            "cloud: {training: {eval_at_epoch_end: no}}",
            "epoch_end: expected true or false, without quotes, received 'no'",
        ),
        ("cloud: {training: {checkpoint_ttl_seconds: 60}}", "checkpoint_ttl_seconds.*or null, received 60"),
        ("cloud: {training: {lr_schedule: step}}", "lr_schedule: expected constant or linear or cosine"),
        ("cloud: {training: {epochs: 1, epochs: 2}}", "epochs is given twice"),
        ("cloud: {training.epochs: 1, training: {epochs: 2}}", "training.epochs: is given twice"),
        ("cloud: {training: {learning_rate: 1" + "0" * 400 + "}}", "training.learning_rate"),
        ("cloud: {training: {epochs: !!bool maybe}}", "not valid YAML"),
        ('cloud: {data: {dir: "a\\0b"}}', "data.dir"),
        ("cloud: {service: 'https://host/?key=1'}", "service"),
        ("cloud: {service: hosted}", "service: expected tinker, local or a URL"),
        ("cloud: {service: 'ftp://x'}", "service"),
        ("cloud: {model: ''}", "model"),
        ("cloud: {", "not valid YAML"),
        ("cloud: *nobody", "not valid YAML"),
        ("cloud:", "holds no settings"),
        ("- cloud", "holds no sections"),
        ("", "holds no sections"),
        ("clud: {model: x}", "no such section.*did you mean clud.*the file has clud"),
    ],
)
def test_what_does_not_fit_names_file_section_and_key(load, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert "training.yaml, section cloud" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml, section cloud: the file cannot be read"):
        load_config_from_yaml(tmp_path / "absent.yaml")


def test_a_password_in_an_address_is_refused_and_not_shown(load):
    with pytest.raises(ConfigError, match="service") as caught:
        load("cloud: {service: 'https://me:hunter2@example.org'}")
    assert "hunter2" not in str(caught.value)


def test_what_stands_in_the_place_of_an_address_is_never_shown(load):
    with pytest.raises(ConfigError, match="service") as caught:
        load("cloud: {service: tml-abcdefgh123456}")
    assert "abcdefgh" not in str(caught.value)


def test_overrides_win_by_full_key_by_unique_ending_and_as_text(load):
    text = "cloud: {training: {epochs: 3, seed: 1}}"
    assert load(text, overrides={"training.epochs": 1}).epochs == 1
    assert load(text, overrides={"epochs": 2, "lora.rank": 8}).lora.rank == 8
    assert load(text, overrides="{training.seed: 7}").seed == 7
    assert load(text, overrides={"training": {"epochs": 4}}).epochs == 4
    with pytest.raises(ConfigError, match="training.epochs: is given twice"):
        load(text, overrides={"training": {"epochs": 4}, "training.epochs": 5})
    with pytest.raises(ConfigError, match="training.epoch: there is no such setting"):
        load(text, overrides={"training.epoch": 1})
    with pytest.raises(ConfigError, match="training.epochs"):
        load(text, overrides={"training.epochs": "1"})


def test_a_dumped_configuration_reads_back_the_same(tmp_path):
    config = load_config_from_yaml(CONFIG, "local", {"training.budget_usd": 2.5})
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config_from_yaml(tmp_path / "config.yaml", "run") == config


def test_settings_can_be_replaced_by_their_dotted_keys():
    config = load_config_from_yaml(CONFIG, "local")
    changed = config.with_overrides({"lora.rank": 64, "training.epochs": 3})
    assert (changed.lora.rank, changed.epochs) == (64, 3)
    assert changed.with_overrides({"lora.rank": 16, "training.epochs": config.epochs}) == config
    with pytest.raises(ConfigError, match="lora.rnk"):
        config.with_overrides({"lora.rnk": 64})


def test_the_home_directory_is_not_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainingConfig(data_dir=tmp_path / "chats")
    assert str(tmp_path) not in dump_config(config)
    assert config.resolve(Path("~/chats")) == tmp_path / "chats"


def test_a_configuration_cannot_be_changed_or_made_wrong():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().epochs = 3
    with pytest.raises(ConfigError, match="training.batch_size"):
        TrainingConfig(batch_size=0)


@pytest.mark.parametrize(
    ("modules", "switches"),
    [
        (("q_proj",), (True, False, False)),
        (("gate_proj", "lm_head"), (False, True, True)),
        (("q_proj", "down_proj"), (True, True, False)),
    ],
)
def test_target_modules_become_tinkers_three_switches(modules, switches):
    lora = LoraConfig(target_modules=modules)
    assert (lora.train_attn, lora.train_mlp, lora.train_unembed) == switches


def test_relative_paths_are_found_from_the_project_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "chats").mkdir()
    file = tmp_path / "configs" / "training.yaml"
    file.write_text("cloud: {data: {dir: chats}}", encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config_from_yaml(file)
    assert config.data_dir == Path("chats")
    assert config.resolve(config.data_dir) == tmp_path / "chats"
    (elsewhere / "chats").mkdir()
    assert config.resolve(config.data_dir).resolve() == elsewhere / "chats"


def test_an_override_is_blamed_for_itself_and_the_file_for_its_own(tmp_path):
    path = tmp_path / "training.yaml"
    path.write_text("cloud: {training: {epochs: 2}}", encoding="utf-8")
    for overrides in ({"training.epochs": 0}, {"epochs": 0}, "epochs: 0"):
        with pytest.raises(ConfigError, match=r"^overrides: training\.epochs: expected"):
            load_config_from_yaml(path, "cloud", overrides)
    with pytest.raises(ConfigError, match=r"^overrides: training\.epoch: there is no such setting"):
        load_config_from_yaml(path, "cloud", {"training.epoch": 1})
    path.write_text("cloud: {training: {epochs: 0}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"training\.yaml, section cloud: training\.epochs: expected"):
        load_config_from_yaml(path, "cloud", {"training.batch_size": 4})


@pytest.mark.parametrize(
    "value",
    ["TINKER_API_KEY", "tml-AAAABBBBCCCC", "eyJhbGciOi.eyJzdWIi.c2ln", "my_key", "MY_KEY\n", "PATH", "", 3, None],
)
def test_a_key_variable_is_a_name_whose_value_is_never_shown_and_not_the_hosted_keys(value):
    with pytest.raises(ConfigError, match="service_key_env: expected the name of an environment variable") as refused:
        TrainingConfig(service_key_env=value)
    assert not value or str(value) not in str(refused.value).partition(";")[0]
    assert TrainingConfig(service_key_env="LAB_SERVER_KEY").service_key_env == "LAB_SERVER_KEY"


@pytest.mark.parametrize(
    "address", ["https://a.example\\@b.example", "https://a.example\\.b.example", "https://ａ.example"]
)
def test_an_address_that_programs_read_differently_is_refused(address):
    with pytest.raises(ConfigError, match="service: expected"):
        TrainingConfig(service=address)
