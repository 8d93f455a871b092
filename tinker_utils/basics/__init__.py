"""Tools that every room may use: text made fit to be shown, tables, strict JSON, threads that end with the process."""

from typing import TYPE_CHECKING

from tinker_utils.basics.lazy import lazy_names

if TYPE_CHECKING:
    from tinker_utils.basics.redaction import (
        first_line as first_line,
        one_sentence as one_sentence,
        printable as printable,
        quoted as quoted,
        without_home as without_home,
        without_secrets as without_secrets,
    )
    from tinker_utils.basics.strict_json import json_problem as json_problem, parse_json as parse_json
    from tinker_utils.basics.table import Table as Table
    from tinker_utils.basics.threads import in_background as in_background

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "redaction": "first_line one_sentence printable quoted without_home without_secrets",
        "strict_json": "json_problem parse_json",
        "table": "Table",
        "threads": "in_background",
    },
)
