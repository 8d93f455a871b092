"""Templates that loop, double and raise to powers, rendered by transformers itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest

import tinker_utils
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import sandbox
from tinker_utils.data.renderers import renderer_for
from tinker_utils.data.sandbox import has_powers
from tinker_utils.data.template import ChatTemplate
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import ConfigError, RenderingError, ServiceError

PACKAGED = Path(tinker_utils.__file__).parent / "local" / "base_model"
SAY = [{"role": "user", "content": "hello"}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(a='x' * 1000) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}"


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(PACKAGED, tmp_path / "model"))


def loaded(model):
    return load_tokenizer(dataclasses.replace(TrainingConfig(), service="local", model=str(model)))


@pytest.mark.parametrize(("template", "why"), [(LOOPS, "it took over 0 s"), (DOUBLES, "it took over 0.0625 GiB")])
def test_a_template_that_takes_too_much_is_ended(model, monkeypatch, template, why):
    (model / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(sandbox, "_SECONDS", 0.2 if template == LOOPS else 60.0)
    monkeypatch.setattr(sandbox, "_BYTES", 1 << 26)
    with pytest.raises(RenderingError, match=f"refused 1 messages .*{why}"):
        ChatTemplate(loaded(model)).text_of(SAY)
    for thread in threading.enumerate():
        if thread.name == "chat template":
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{% generation %}{{ 2**2 }}{% endgeneration %}"])
def test_a_template_with_powers_is_refused(model, template):
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=r"^data.template: the chat template uses `\*\*`"):
        renderer_for(TrainingConfig(), loaded(model))


def test_stars_in_text_are_no_powers():
    assert not has_powers("**bold** {{ 2 * 2 }} {# a ** b #} {{ '**' }}")


@pytest.mark.parametrize("content", ["{}", "[]", "null", "3", '"x"'])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_model_whose_files_hold_anything_is_refused_in_a_sentence_or_loads(model, name, content):
    if name == "tokenizer_config.json":
        content = json.dumps({"chat_template": 3}) if content == "{}" else content
    (model / name).write_text(content)
    try:
        tokenizer = loaded(model)
    except ServiceError as error:
        assert str(error).startswith("model: ")
    else:
        assert ChatTemplate(tokenizer).text_of(SAY)
