"""The pages that walk through the code name what exists."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


def _names(page):
    """Dotted names of tfscale in code spans."""
    text = (ROOT / page).read_text()
    return sorted(set(re.findall(r"`(tfscale(?:\.\w+)+)`", text)))


@pytest.mark.parametrize("page", PAGES)
def test_names_on_a_page_exist(page):
    for name in _names(page):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[length:]:
            assert hasattr(found, part), f"{page} names {name}, which does not exist"
            found = getattr(found, part)


def test_the_walk_has_seven_hops():
    text = (ROOT / "docs/reading-the-code.md").read_text()
    assert len(re.findall(r"^\d\. \*\*`tfscale\.", text, re.MULTILINE)) == 7
    assert len(_names("docs/reading-the-code.md")) > 20


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (folder / link).exists(), f"{page} links to {link}, which does not exist"
