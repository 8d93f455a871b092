"""The reach into ipykernel: a canary that says what an upgrade broke."""

from __future__ import annotations

import inspect

from ipykernel.kernelbase import Kernel
from ipywidgets import Widget

from tinker_utils.views.compat import answer_changes


def test_ipykernel_and_ipywidgets_still_have_what_answers_are_made_of():
    parameters = inspect.signature(Kernel._publish_status).parameters
    assert list(parameters) == ["self", "status", "channel", "parent"], (
        "ipykernel sends its status in another way: mend _take_in in tinker_utils/views/compat.py"
    )
    assert callable(Widget._handle_msg), "ipywidgets takes messages in another way: mend tinker_utils/views/compat.py"


def test_without_a_kernel_nothing_is_changed():
    answer_changes([Widget()])
