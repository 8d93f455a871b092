"""The settings name a renderer: what cannot be is said in a sentence that names the key."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.renderers import renderer_for
from tinker_utils.data.template_renderer import TemplateRenderer
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import ConfigError
from tinker_utils.plan.preparing import prepare
from tinker_utils.training.checks import preflight


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TrainingConfig(service="local", model="tiny"))


def test_a_template_is_found_beside_the_configuration_and_takes_arguments(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "mine.jinja").write_text("{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}")
    (tmp_path / "configs" / "run.yaml").write_text(
        "local:\n  service: local\n  data:\n    template: mine.jinja\n    template_arguments: {mood: glad}\n"
    )
    config = load_config_from_yaml(tmp_path / "configs" / "run.yaml", "local")
    renderer = renderer_for(config, tokenizer)
    assert isinstance(renderer, TemplateRenderer)
    assert renderer.template.text_of([{"role": "user", "content": "!"}]) == "glad!"
    assert config.resolved().template == str(tmp_path / "mine.jinja")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"template": "absent.jinja"}, "data.template: .*absent.jinja cannot be read .No such file"),
        ({"template_arguments": {"tokenize": True}}, "data.template_arguments: 'tokenize' is set by the project"),
        ({"template_arguments": {"not a name": 1}}, "data.template_arguments: expected names with values, received"),
        ({"template_arguments": ["x"]}, "data.template_arguments: expected names with values, received"),
        ({"template_arguments": {"x": object()}}, "data.template_arguments: expected names with values, received"),
        (
            {"template": "renderer:qwen3", "template_arguments": {"x": 1}},
            "data.template: renderer:qwen3 takes no template_arguments",
        ),
        ({"max_skipped_share": 1.5}, "data.max_skipped_share: expected a number, from 0 up to 1, received 1.5"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        renderer_for(TrainingConfig(service="local", model="tiny", **settings), tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("tinker_cookbook") is not None, reason="the package is installed")
def test_a_renderer_of_a_package_that_is_missing_is_told_before_the_run(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    config = TrainingConfig(service="local", model="tiny", data_dir=tmp_path, template="renderer:qwen3")
    sentence = r"^data.template: renderer:qwen3 needs the package tinker-cookbook .*; install it"
    with pytest.raises(ConfigError, match=sentence):
        prepare(config)
    (check,) = (check for check in preflight(config, tmp_path / "run").checks if check.name == "tokenizer")
    assert check.status == "fail"


def test_a_model_without_a_template_asks_for_one(tokenizer, tmp_path):
    tokenizer = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    text, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(ConfigError, match="^data.template: tiny has no chat template of its own; name a file"):
        renderer_for(TrainingConfig(service="local", model="tiny"), tokenizer)
    (tmp_path / "own.jinja").write_text(text)
    config = TrainingConfig(service="local", model="tiny", template=str(tmp_path / "own.jinja"))
    assert "2+2?" in renderer_for(config, tokenizer).template.text_of([{"role": "user", "content": "2+2?"}])


def test_settings_with_arguments_survive_a_file(tmp_path):
    config = TrainingConfig(template_arguments={"enable_thinking": False, "levels": [1, {"a": None}]})
    assert json.loads(json.dumps(config.to_flat_dict()))["data.template_arguments"] == config.template_arguments
