"""One table in two notations: aligned, complete, and with nothing of its cells taken for markup."""

import pytest

from tinker_utils.basics.table import Table

SMALL = Table(("", "a", "long name"), (("first half",), ("x", "1", "2"), ("yy", "10", "–")), "What is in it")


def test_text_has_its_first_column_left_and_the_others_right():
    assert str(SMALL) == "\n".join(["     a  long name", "first half", "x    1          2", "yy  10          –"])
    assert repr(SMALL) == SMALL.to_text()


def test_words_begin_at_the_left():
    words = Table(("check", "verdict"), (("data", "ok"), ("a key", "failed")), words=True)
    assert str(words) == "\n".join(["check  verdict", "data   ok", "a key  failed"])
    assert '<td style="text-align:left">ok</td>' in words._repr_html_()


def test_html_names_columns_and_rows():
    html = SMALL._repr_html_()
    assert "<caption>What is in it</caption>" in html
    assert '<td></td><th scope="col">a</th><th scope="col">long name</th>' in html
    assert '<th scope="rowgroup" colspan="3" style="text-align:left">first half</th>' in html
    assert html.count('<th scope="row" ') == 2


def test_cells_are_text_in_every_notation():
    cell = "<script>|\"'*_`$\nnext"
    table = Table(("key", cell), ((cell, cell),), cell)
    assert table.to_text().count("\n") == 1
    assert "<script" not in table._repr_html_() and "&lt;script&gt;|&quot;&#x27;" in table._repr_html_()


def test_a_row_has_as_many_cells_as_the_header():
    with pytest.raises(ValueError, match="a row has 2 cells under a header of 3"):
        Table(("", "a", "b"), (("x", "1"),))
