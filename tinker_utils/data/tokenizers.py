"""Loads a model's tokenizer, by the same rules as the Tinker SDK; tests/service/test_compat.py compares the two.

Here is also what the model's config.json says, which is looked for in the same places.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from tinker_utils.basics.files import read_bounded
from tinker_utils.basics.redaction import first_line
from tinker_utils.basics.strict_json import json_or_none
from tinker_utils.basics.threads import in_background
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ServiceError

# Two threads that import transformers at once can find its lazy module half made.
_IMPORTING = threading.Lock()
_CONFIG, _MAX_CONFIG = "config.json", 1 << 20
# A config.json is good to have and no more: seconds that a hub may take for it.
_HUB_SECONDS = 5.0
# Of models whose tokenizer is a program of its own: the version of it that the SDK trusts, and so do we.
_TRUSTED = {
    "moonshotai/Kimi-K2-Thinking": "612681931a8c906ddb349f8ad0f582cb552189cd",
    "moonshotai/Kimi-K2.5": "4d01dfe0332d63057c186e0b262165819efb6611",
    "moonshotai/Kimi-K2.6": "b5aabbfb20227ed42becbf5541dbffd213942c58",
    "moonshotai/Kimi-K3": "f831ab66814297da540d832a5235f8e904f29d06",
}


def load_tokenizer(config: TrainingConfig) -> Any:
    """Load the base model's tokenizer: the packaged model's, that of a directory, or the hub's.

    Raises:
        ServiceError: it cannot be loaded.
    """
    directory = _directory(config)
    name, options = (str(directory), {}) if directory else hub_tokenizer(config.model)
    try:
        with _IMPORTING:
            from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # of files that hold anything
        raise ServiceError(
            f"model: the tokenizer of {config.model} cannot be loaded ({type(error).__name__}: "
            f"{first_line(str(error))}); {_advice(str(error))}."
        ) from error


def model_config(config: TrainingConfig) -> Any:
    """Return what the base model's config.json says; None where that is not known without waiting long.

    From a directory it is read; the hub, or what is kept of it here, is asked once in a process.
    """
    directory = _directory(config)
    if directory is None:
        return _on_hub(base_model(config.model))
    try:
        return json_or_none(read_bounded(directory / _CONFIG, _MAX_CONFIG))
    except OSError:
        return None


def _directory(config: TrainingConfig) -> Path | None:
    """Return where the files of a model are that lies on this machine; None for one on the hub."""
    name = config.resolved().model
    directory = Path(__file__).parents[1] / "local" / "base_model" if name == "tiny" else Path(name)
    return directory if directory.is_dir() else None


@functools.cache
def _on_hub(model: str) -> Any:
    def load() -> Any:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        kept = try_to_load_from_cache(model, _CONFIG)
        path = kept if isinstance(kept, str) else hf_hub_download(model, _CONFIG, etag_timeout=_HUB_SECONDS)
        return json_or_none(read_bounded(Path(path), _MAX_CONFIG))

    try:
        return in_background(load, "config.json").result(_HUB_SECONDS)
    except Exception:  # whatever the hub and its client say of it
        return None


def base_model(model: str) -> str:
    """Return ORG/NAME of a model that is named with a variant or context length behind it."""
    name = model.split(":")[0]
    return name.rpartition("/")[0] if name.count("/") == 2 else name


def hub_tokenizer(model: str) -> tuple[str, dict[str, Any]]:
    """Return where on the hub the tokenizer of a model is, and the options to load it with.

    A variant or context length behind the name, as in `ORG/NAME:peft:262144` and `ORG/NAME/VARIANT`, has the tokenizer
    of ORG/NAME; Llama 3, which is not free to load, has a copy that is.

    Raises:
        ServiceError: the tokenizer is on no hub.
    """
    name = base_model(model)
    if name.startswith("meta-llama/Llama-3"):
        name = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"
    if name.startswith(("TML/", "thinkingmachines/")):
        raise ServiceError(
            f"model: {model} has a tokenizer of its own that is on no hub, and this project cannot load it; choose "
            "another model."
        )
    name = name.removesuffix("-Text-Only") if name == "moonshotai/Kimi-K2.5-Text-Only" else name
    return name, {"trust_remote_code": True, "revision": _TRUSTED[name]} if name in _TRUSTED else {}


def _advice(problem: str) -> str:
    if "gated" in problem or "401" in problem or "403" in problem:
        return "accept its licence on the hub and set HF_TOKEN, or give a directory that holds it"
    if "trust_remote_code" in problem or "custom code" in problem:
        return "it is a program, which is not run unseen: give a directory that holds a tokenizer.json"
    return "give a directory that holds it, or a name that the Hugging Face hub knows"
