"""Every page of the course, read as a reader does: run in a kernel from an empty folder, answered, and compared with what is saved."""
import json
import re

import house
import pages
import pytest

LONG = ["09_accelerate", "14_spaces", "15_endpoint", "06_models", "05_media", "16_flow"]          # first, so that two workers finish together
COURSE = sorted((p for p in pages.course() if p != "index"), key=lambda p: (LONG.index(p) if p in LONG else len(LONG), p))


@pytest.mark.parametrize("page", COURSE + ["index"])
def test_a_reader_gets_what_the_page_shows(page):
    assert "\n".join(pages.read(page)) == ""


# How a page of the course is made

@pytest.mark.parametrize("page", COURSE)
def test_something_is_seen_within_the_first_screen(page):
    cells = [c for c in house.Page(pages.NBS / f"{page}.ipynb", pages.NBS).cells
             if not re.search(r"^#\| *(hide|export|default_exp|code-fold)", house.source(c), re.M) or c.get("outputs")]
    seen = [i for i, c in enumerate(cells) if c.get("outputs") or "](images/" in house.source(c)]
    assert seen and seen[0] <= 8, f"the first thing to see is in cell {seen[:1]} of those that are not folded"


@pytest.mark.parametrize("page", COURSE)
def test_a_cell_fits_on_a_screen(page):
    for cell in house.Page(pages.NBS / f"{page}.ipynb", pages.NBS).cells:
        lines = [x for x in house.source(cell).splitlines() if not x.startswith("#|")]
        assert cell["cell_type"] != "code" or len(lines) <= 25, house.source(cell)[:80]


@pytest.mark.parametrize("page", COURSE)
def test_every_page_has_a_picture_that_is_described(page):
    cells = house.Page(pages.NBS / f"{page}.ipynb", pages.NBS).cells
    plots = [c for c in cells if any(k.startswith("image/") for o in c.get("outputs", []) for k in o.get("data", {}))]
    for c in plots: assert "#| fig-alt:" in house.source(c) and "#| fig-cap:" in house.source(c), house.source(c)[:100]
    shots = pages.photographs(page)
    assert plots or shots
    for name, alt in shots:
        assert len(alt) > 20, f"{name} has no alt text"
        for theme in ("light", "dark"): assert (pages.NBS / f"images/{name}-{theme}.png").exists(), name


@pytest.mark.parametrize("page", COURSE)
def test_exercises_are_work(page):
    cells = house.Page(pages.NBS / f"{page}.ipynb", pages.NBS).cells
    found = pages.exercises(cells, page)
    assert len(found) >= 2, "two exercises at least"
    for ex in found: assert "..." in house.source(cells[ex.stub]) and ex.solution and len(ex.wrong) >= 2, ex.name
    known = json.loads((pages.WRONG / f"{page}.json").read_text()) if (pages.WRONG / f"{page}.json").exists() else {}
    assert set(known) <= {ex.name for ex in found}, "wrong answers to an exercise that is gone"


def test_no_two_exercises_have_one_name():
    names = [ex.name for page in COURSE for ex in pages.exercises(house.Page(pages.NBS / f"{page}.ipynb", pages.NBS).cells, page)]
    assert len(names) == len(set(names)), names
