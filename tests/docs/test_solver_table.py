"""The table of solvers in the documentation is that of the code."""

from pathlib import Path

from tools.solver_pages import table

from fewstep.core import solvers

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"


def test_the_page_has_every_solver_as_the_code_lists_it() -> None:
    text = PAGE.read_text("utf-8")
    assert table() in text, "run python -m tools.solver_pages"
    assert all(f"| `{name}`" in text for name in solvers.names())
