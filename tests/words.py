"""The words of the course: the first bold use of a term on a page links to the glossary, `nbs/92_words.ipynb`.

    python tests/words.py                    first uses that do not link yet, a line each
    python tests/words.py --write            make them links, on every page of the course
    python tests/words.py --write 03_datasets   on one page

A term is a heading of the glossary. `**commit**` becomes `[**commit**](92_words.ipynb#commit)` where a page first uses it.
Titles and promises (cell 1), headings and code are left as they are, and so is a term inside another link.
"""
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

NBS = Path(__file__).parents[1]/"nbs"
GLOSSARY = "92_words"
NO_TERMS = {"Where the words belong", "What you can now do", "Exercises"}      # headings of the glossary that are no terms
ALSO = {                # other forms of a term; a plural with s is found without this
    "collator": "data collator", "data parallel": "ddp", "evaluation": "eval", "memory-mapped": "memory-mapping",
    "quantization": "quantisation", "repo": "repository", "streamed": "streaming", "token ids": "token", "padding token": "padding",
    "viewer": "dataset viewer", "inference endpoint": "endpoint", "hf jobs": "job", "weights": "weight", "datasets": None, "models": None,
}
SENSES = {              # a word with two meanings: the entry that pages mean, and the pages that mean another one, or none
    "token": ("token (piece of text)", {"02_hub": "token (access token)", "17_actions": "token (access token)"}),
    "rank": ("rank (of an adapter)", {"09_accelerate": "rank (of a process)", "18_compute": "rank (of a process)"}),
    "config": ("config (of a model)", {"03_datasets": "config (of a Dataset repo)"}),
    "split": ("split", {"10_train": None}),              # a verb there
}
BOLD = re.compile(r"(?<![*\w])\*\*(?![\s*])([^*\n]+?)(?<!\s)\*\*(?!\*)")
CLOSED = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`|^#{1,6} .*?$|!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\([^)]*\)", re.M | re.S)   # nothing is written into these


def anchor(heading):
    "The address of a heading within its page, as Quarto makes it."
    kept = re.sub(r"[^\w\s.-]", "", heading).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", kept))


def source(cell): return "".join(cell["source"])


def terms(cells):
    "The terms of the glossary: the name in small letters -> its address."
    heads = [h for c in cells if c["cell_type"] == "markdown" for h in re.findall(r"^## (.+?)\s*$", source(c), re.M)]
    return {h.lower(): anchor(h) for h in heads if h not in NO_TERMS}


def entry(word, page, known):
    "The address of the entry that a bold text of a page means, or None."
    word = " ".join(word.lower().split())
    for form in (word, word.removesuffix("s")):
        form = ALSO.get(form, form)
        if form is None: return None
        usual, elsewhere = SENSES.get(form, (form, {}))
        if found := known.get((elsewhere.get(page, usual) or "").lower()): return found


@dataclass(frozen=True)
class Use:
    "The first bold use of a term on a page."
    cell: int
    start: int           # where it stands in the cell's source
    end: int
    text: str            # with the stars
    anchor: str
    linked: bool


def first_uses(cells, page, known):
    "The first bold use of each term on a page, and whether it is a link."
    seen, out = set(), []
    for i, cell in enumerate(cells):
        if not i or cell["cell_type"] != "markdown": continue
        text = source(cell)
        closed = [(m.start(), m.end(), m[0]) for m in CLOSED.finditer(text)]
        for m in BOLD.finditer(text):
            around = next((c for a, z, c in closed if a <= m.start() < z), "")
            if around and not around.startswith("["): continue
            to = entry(m[1], page, known)
            if to is None or to in seen: continue
            seen.add(to)
            out.append(Use(i, m.start(), m.end(), m[0], to, bool(around)))
    return out


def linked(cells, page, known):
    "The cells of a page, with a link at the first use of each term."
    cells = json.loads(json.dumps(cells))
    for use in reversed(first_uses(cells, page, known)):
        if use.linked: continue
        text = source(cells[use.cell])
        text = f"{text[:use.start]}[{use.text}]({GLOSSARY}.ipynb#{use.anchor}){text[use.end:]}"
        cells[use.cell]["source"] = text.splitlines(True)
    return cells


def course():
    "The pages that link to the glossary."
    return sorted(p.stem for p in NBS.glob("*.ipynb") if p.stem != GLOSSARY)


def load(page): return json.loads((NBS/f"{page}.ipynb").read_text(encoding="utf-8"))


def missing(page, known):
    "First uses on a page that do not link to the glossary, a sentence each."
    return [f"{page}, cell {u.cell}: {u.text} -> {GLOSSARY}.ipynb#{u.anchor}" for u in first_uses(load(page)["cells"], page, known)
            if not u.linked]


def main(names, write):
    known = terms(load(GLOSSARY)["cells"])
    for page in names or course():
        todo = missing(page, known)
        print("\n".join(todo), end="\n" if todo else "")
        if not (write and todo): continue
        book = load(page)
        book["cells"] = linked(book["cells"], page, known)
        text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        (NBS/f"{page}.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([a for a in sys.argv[1:] if not a.startswith("-")], "--write" in sys.argv)
