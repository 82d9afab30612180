"""The line that installs hfflow, stated once (`install_from` in settings.ini) and written into every page.

    python tests/installline.py           names the pages whose line is another one; exit code 1 if there is one
    python tests/installline.py --write   writes the line into them
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORMS = re.compile(r"""(?P<before>pip install (?:-q )?)(?P<quote>\\"|["'])?hfflow(?P<extras>\[[a-z,]+\])?(?P<from> @ [^'"\\]*)?(?(quote)(?P=quote))""")


def source():
    "Where pip finds hfflow: empty once the package is on an index."
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]["install_from"].strip()


def pages():
    return sorted((ROOT/"nbs").rglob("*.ipynb"))


def rewritten(text):
    "The text of a notebook with the line as it should be in its set-up cell and in its shell blocks."
    where = source()
    def line(m): return f"{m['before']}'hfflow{m['extras'] or ''}{' @ ' + where if where else ''}'"
    def cell(m):
        inner = FORMS.sub(line, m[0])
        return re.sub(r"""system\((?:'|\\")(pip install [^)]*?)(?:'|\\")\)""", lambda s: f'system(\\"{s[1]}\\")', inner)
    return re.sub(r"(?m)^.*'google\.colab' in sys\.modules: get_ipython.*$|^ *\"pip install .*$", cell, text)


if __name__ == "__main__":
    bad = [p for p in pages() if rewritten(p.read_text(encoding="utf-8")) != p.read_text(encoding="utf-8")]
    for page in bad:
        print(page.relative_to(ROOT))
        if "--write" in sys.argv[1:]: page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(bool(bad) and "--write" not in sys.argv[1:])
