"""The cells that set a page up: the line that installs hfflow is stated once (`install_from` in settings.ini), and the cells are folded
in JupyterLab and in Colab as they are on the site, so that a reader's first screen shows the result.

    python tests/setup_cells.py           names the pages in which a cell is not as it should be; exit code 1 if there is one
    python tests/setup_cells.py --write   mends them
"""
import json
import re
import sys
from configparser import ConfigParser
from functools import cache

import house

SETS_UP = re.compile(r"^#\| *(hide|code-fold: true|default_exp\b.*|export)$", re.M)      # not `exports`, which the page explains
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}                        # Colab's and JupyterLab's words for it
INSTALLS = re.compile(r"""(?m)^.*'google\.colab' in sys\.modules: get_ipython.*$|^ *\"pip install .*$""")
FORMS = re.compile(r"""(pip install (?:-q )?)(?P<quote>\\"|["'])?hfflow(\[[a-z,]+\])?(?: @ [^'"\\]*)?(?(quote)(?P=quote))""")
CALL = re.compile(r"""system\((?:'|\\")(pip install [^)]*?)(?:'|\\")\)""")


@cache
def install_from():
    "Where pip finds hfflow: empty once the package is on an index."
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(house.ROOT/"settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]["install_from"].strip()


def metadata(cell):
    "The metadata of a cell."
    return FOLDED if cell["cell_type"] == "code" and SETS_UP.search(house.source(cell)) else {}


def installing(text):
    "The text of a notebook with the install line as it should be, in its set-up cell and in its shell blocks."
    where = f" @ {install_from()}" if install_from() else ""
    def line(found): return CALL.sub(r'system(\\"\1\\")', FORMS.sub(lambda m: f"{m[1]}'hfflow{m[3] or ''}{where}'", found[0]))
    return INSTALLS.sub(line, text)


def folding(text):
    "The text of a notebook with each cell folded or open as it should be."
    nb = json.loads(text)
    for cell in nb["cells"]: cell["metadata"] = metadata(cell)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(write):
    "Name the pages that are not as they should be, and mend them if asked; how many were left."
    left = 0
    for page in house.pages():
        text = page.path.read_text(encoding="utf-8")
        if (mended := folding(installing(text))) == text: continue
        print(page.name)
        if write: page.path.write_text(mended, encoding="utf-8")
        else: left += 1
    return left


if __name__ == "__main__": sys.exit(bool(main("--write" in sys.argv[1:])))
