"""Numbers in the prose of a page that no cell of the page backs.

    python tests/prose.py [PAGE ...]     a line for each: page, number, sentence
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBS, ALLOWED = ROOT/"nbs", ROOT/"tests/numbers.json"
WORDS = dict(zip("three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(), range(3, 20)))
WORDS |= dict(zip("twenty thirty forty fifty sixty seventy eighty ninety hundred".split(), range(20, 101, 10)))


def prose(cells):
    "The running text of a page: no code, no links' targets, no tables, no pictures, no titles of exercises, no first paragraph with its needs."
    for cell in cells:
        if cell["cell_type"] != "markdown": continue
        text = "".join(cell["source"])
        text = re.sub(r"```.*?```|`[^`]*`|<[^>]+>|!\[[^\]]*\]\([^)]*\)|\$[^$]*\$|^\|.*$|^#+ .*$|\*\*(?:Needs|Takes):\*\*[^*\[]*", " ", text, flags=re.S | re.M)
        yield re.sub(r"\]\([^)]*\)", "] ", text)


def shown(cells):
    "Everything that the page computes or shows: code and outputs."
    for cell in cells:
        if cell["cell_type"] != "code":
            yield " ".join(re.findall(r"```.*?```|`[^`]*`|^\|.*$", "".join(cell["source"]), re.S | re.M))      # literal code in the text
            continue
        yield "".join(cell["source"])
        for out in cell.get("outputs", []):
            for kind, value in [("text", out.get("text", "")), *out.get("data", {}).items()]:
                if not kind.startswith("image/"): yield "".join(value)


def numbers(text):
    "Numbers in a text, as floats: `8,550`, `0.5`, `12 %`."
    return {float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?!\d)", text) if n.replace(",", "").replace(".", "").isdigit()}


def unbacked(page):
    "(number as written, sentence) of the page's prose that nothing on the page backs."
    cells = json.loads((NBS/f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    there = set().union(*(numbers(re.sub(r"[_eE]", " ", t)) | numbers(t.replace("_", "")) for t in shown(cells)))
    years, shares = {float(y) for y in range(1950, 2031)}, {100 * n for n in there}
    words = " ".join(shown(cells)).lower()
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8")).get(page, []) if ALLOWED.exists() else []
    for text in prose(cells):
        for sentence in re.split(r"(?<=[.!?:])\s+", text):
            if any(a in sentence for a in allowed): continue
            for n, percent in re.findall(r"(?<![\w.\-/#])(\d[\d,]*(?:\.\d+)?)(?![\w\-]*\w*[A-Za-z])( ?%)?", sentence):
                value = float(n.rstrip(",").replace(",", ""))
                backed = there | years | (shares if percent else set())
                if value > 2 and not any(abs(value - t) <= .5 * 10**-len(n.partition(".")[2]) for t in backed): yield n, " ".join(sentence.split())
            for w in re.findall(r"[A-Za-z]+", sentence.lower()):
                if w in WORDS and float(WORDS[w]) not in there and w not in words: yield w, " ".join(sentence.split())


if __name__ == "__main__":
    for page in sys.argv[1:] or sorted(p.stem for p in NBS.glob("*.ipynb")):
        for n, sentence in unbacked(page): print(f"{page}: {n}: {sentence[:150]}")
