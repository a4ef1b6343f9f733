"""Every Python example of the documentation runs, page by page, as a reader would type it.

Fences marked `python` run; those marked `py` need files that are not in the repository.
"""

import re
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if FENCE.search(page.read_text("utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()[60:124, 110:190]).save("photo.jpg")
    names: dict[str, object] = {"__name__": "example"}
    for block in FENCE.finditer(page.read_text("utf-8")):
        # As many empty lines as stand above it: a traceback names the line of the page.
        above = page.read_text("utf-8")[: block.start(1)].count("\n")
        exec(compile("\n" * above + block[1], str(page), "exec"), names)


def test_there_are_examples() -> None:
    assert PAGES
