"""Cells that set a page up are folded in JupyterLab and in Colab too, as they are on the site: a reader's first screen shows the result.

    python tests/folded.py           names the pages in which a cell is folded wrongly; exit code 1 if there is one
    python tests/folded.py --write   mends them
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETS_UP = re.compile(r"^#\| *(hide|code-fold: true|default_exp\b.*|export)$", re.M)      # not `exports`, which the page explains
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}                        # Colab's and JupyterLab's words for it


def wanted(cell):
    "The metadata of a cell."
    return FOLDED if cell["cell_type"] == "code" and SETS_UP.search("".join(cell["source"])) else {}


def mended(text):
    "The text of a notebook with each cell folded or open as it should be."
    nb = json.loads(text)
    for cell in nb["cells"]: cell["metadata"] = wanted(cell)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    bad = 0
    for page in sorted((ROOT/"nbs").rglob("*.ipynb")):
        text = page.read_text(encoding="utf-8")
        if mended(text) == text: continue
        bad += 1
        print(page.relative_to(ROOT))
        if "--write" in sys.argv[1:]: page.write_text(mended(text), encoding="utf-8")
    sys.exit(bool(bad) and "--write" not in sys.argv[1:])
