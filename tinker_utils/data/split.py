"""Holds conversations out for validation: by their prompt, so that lines that are added later move none of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from tinker_utils.data.chat import Conversation
from tinker_utils.data.report import prompt_key


def holds_out(share: float, seed: int) -> Callable[[Conversation], bool]:
    """Return what says whether a conversation is held out.

    The hash of a prompt is as good as a number drawn at random: where it falls into the lowest `share` of all hashes,
    the prompt is held out, with all its answers. Case and white space make no other prompt.
    """

    def is_held_out(conversation: Conversation) -> bool:
        key = json.dumps([seed, prompt_key(conversation)], ensure_ascii=False).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < share * 2**64

    return is_held_out
