"""The table of training methods in the documentation is that of the code."""

from tools.distill_table import EXACT, PAGE, table

from fewstep.core.objectives import methods


def test_the_page_has_every_method_as_the_code_lists_it() -> None:
    text = PAGE.read_text("utf-8")
    assert table() in text, "run python -m tools.distill_table"
    assert set(EXACT) == set(methods.names())
