"""What the pages say: every number has a cell that backs it, and words are spelled right."""
import json
import re
import subprocess
import sys
from pathlib import Path

import house
import pages
import prose
import pytest

ROOT = Path(__file__).parents[1]
COURSE = pages.course()


@pytest.mark.parametrize("page", COURSE)
def test_a_cell_backs_every_number(page):
    assert [f"{n}: {sentence}" for n, sentence in prose.unbacked(page)] == [], "compute it in a cell, or say it without the number"


def test_a_number_out_of_the_air_is_found(tmp_path, monkeypatch):
    said = ["The cell makes sixty rows.", "It takes 53 seconds.", "It read 1,000 rows and 12 % were right.", "Python 3.11 needs `7` of them."]
    cells = [dict(cell_type="markdown", source=said), dict(cell_type="code", source=["rows = 1_000; share = .12"], outputs=[])]
    (tmp_path / "a.ipynb").write_text(json.dumps(dict(cells=cells)))
    monkeypatch.setattr(prose, "NBS", tmp_path)
    assert {n for n, _ in prose.unbacked("a")} == {"53", "sixty", "3.11"}


def test_no_allowance_is_left_over():
    if not prose.ALLOWED.exists(): return
    for page, allowed in json.loads(prose.ALLOWED.read_text()).items():
        text = " ".join(house.source(c) for c in house.Page(prose.NBS / f"{page}.ipynb", prose.NBS).cells)
        for a in allowed: assert a in text, f"{page} does not say {a!r} any more"


def test_words_are_spelled_right(tmp_path):
    for page in house.pages():
        text = "\n\n".join(house.source(c) for c in page.cells if c["cell_type"] == "markdown")
        text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", text, flags=re.S)
        (tmp_path / (page.name.replace("/", "-") + ".md")).write_text(text)
    (tmp_path / "planted.md").write_text("The modle is trainned.\n")
    ran = subprocess.run([Path(sys.executable).parent / "typos", "--config", ROOT / "tests/typos.toml", "--format", "brief", "--isolated", "."],
                         cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in ran.stdout.splitlines() if "planted" not in line]
    assert "modle" in ran.stdout and "trainned" in ran.stdout, ran.stderr
    assert not found, "\n".join(found)
