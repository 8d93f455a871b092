from __future__ import annotations

from pathlib import Path

import pytest

from tinker_utils.errors import ConfigError
from tinker_utils.plan.cost import Prices, load_prices, prices_for, token_cost


def test_the_first_real_runs_estimate():
    # 19,845 · 500 · 3 = 29,767,500 tokens; at 0.40 dollars a million 11.907 dollars.
    assert round(token_cost(19_845 * 500 * 3, 0.40), 2) == 11.91
    assert round(token_cost(19_845 * 500 * 1.5, 0.40), 2) == 5.95


def test_the_comment_in_the_configuration_says_the_same():
    text = (Path(__file__).parents[2] / "configs" / "training.yaml").read_text(encoding="utf-8")
    assert (
        "19,845 examples of 500 tokens at $0.40 per million tokens are $11.91 for 3 epochs, and $5.95 for the" in text
    )


def test_a_million_tokens_cost_the_price():
    assert token_cost(1_000_000, 0.44) == 0.44
    assert token_cost(0, 0.44) == 0


def test_prices_have_a_date_and_a_source_and_know_the_default_model():
    assert load_prices()["Qwen/Qwen3-8B"] == Prices(train=0.44, prefill=0.195, sample=0.60)
    text = (Path(__file__).parents[2] / "tinker_utils" / "plan" / "prices.yaml").read_text(encoding="utf-8")
    assert "date: 2026-10-07" in text
    assert "source: " in text


def test_the_embedded_service_is_free_and_other_servers_have_no_known_price():
    assert prices_for("local", "tiny") == Prices(0, 0, 0)
    assert prices_for("http://127.0.0.1:1", "Qwen/Qwen3-8B") is None
    assert prices_for("tinker", "nobody/knows") is None


def test_samples_are_priced_by_their_prompts_and_by_the_most_that_may_be_written():
    # 600 and 400 tokens at 2 dollars a million, and twice at most 128 at 5 dollars.
    assert Prices(1.0, 2.0, 5.0).sampling([600, 400]) == pytest.approx(0.002 + 256 * 5e-6)
    assert Prices(1.0, 2.0, 5.0).sampling([]) == 0


def test_an_evaluation_is_priced_by_the_dearer_guess():
    assert Prices(0.44, 0.195, 0.6).evaluate == 0.44


@pytest.mark.parametrize("text", ["", "usd_per_million_tokens: 3", "usd_per_million_tokens: {m: {train: x}}", "{"])
def test_a_prices_file_of_another_shape_is_refused(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="prices"):
        load_prices(path)
