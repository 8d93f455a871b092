from .redaction import (
    first_line as first_line,
    one_sentence as one_sentence,
    printable as printable,
    quoted as quoted,
    without_home as without_home,
    without_secrets as without_secrets,
)
from .strict_json import json_problem as json_problem, parse_json as parse_json
from .table import Table as Table
from .threads import in_background as in_background
