"""Run a page of the course as a reader does, in a kernel of its own and from an empty folder, and keep what it showed.

    python tests/pages.py 00_start 02_hub      run the pages, try their exercises, and compare what they show with what is saved
    python tests/pages.py --save 00_start      the same, and save the new outputs

The outputs that are saved are those of such a run, without what nobody reads: progress bars, widgets, warnings on stderr.
"""
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
import setup_cells
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
NBS, WRONG, VARIES = ROOT/"nbs", ROOT/"tests/exercises", ROOT/"tests/varies.json"
INLINE = "module://matplotlib_inline.backend_inline"
BAR = re.compile(r"\s*<div>\s*<progress.*?</div>\s*", re.S)


# Exercises

@dataclass(frozen=True)
class Exercise:
    "An empty answer, its check, and what the page and the tests say about it."
    name: str
    stub: int            # index of the cell
    check: int
    solution: str
    wrong: tuple


def course(root=NBS):
    "The pages of the course that are read here, in reading order."
    return sorted(p.stem for p in root.glob("*.ipynb"))


def exercises(cells, page):
    "The exercises of a page: a cell with `...`, a cell that checks, a folded solution."
    file, found = WRONG/f"{page}.json", []
    wrong = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    stub = None
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code": continue
        text = "".join(cell["source"])
        if re.search(r"(^\w+ = |^ +|: )\.\.\.$", text, re.M): stub = i
        named = re.search(r"^check\('([^']+)'", text, re.M)
        if not named or stub is None: continue
        folded = re.search(r"<details>\s*<summary>Solution</summary>\s*```python\n(.*?)```.*?</details>",
                           "".join(cells[i + 1]["source"]) if i + 1 < len(cells) else "", re.S)
        found.append(Exercise(named[1], stub, i, folded[1] if folded else "", tuple(wrong.get(named[1], ()))))
    return found


def photographs(page):
    "The photographs on a page: (name, alt text)."
    text = "\n".join("".join(c["source"]) for c in json.loads((NBS/f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
                     if c["cell_type"] == "markdown")
    return [(name, alt) for alt, name in re.findall(r"!\[([^\]]*)\]\(images/([\w-]+)-light\.png\)", text)]


# Running

def elsewhere(text):
    "A text without links into the Hub of this machine: they are dead for every reader."
    if not isinstance(text, str): return text
    text = re.sub(r"\[([^\]]+)\]\(http://127\.0\.0\.1:\d+[^)]*\)", r"\1", text)
    return re.sub(r"<?http://127\.0\.0\.1:\d+([^\s>)'\"]*)>?", r"http://127.0.0.1:PORT\1", text)


def cleaned(outputs):
    "What a reader needs of a cell's outputs."
    kept = []
    for out in outputs:
        if out.output_type == "stream" and out.name == "stderr": continue
        if out.output_type == "stream": out["text"] = elsewhere(out.text.replace("\r\n", "\n"))      # the shell's terminal
        if "data" in out:
            out = nbformat.from_dict({**out, "data": {k: v for k, v in out.data.items() if "widget" not in k}, "metadata": {}})
            if "text/html" in out.data: out.data["text/html"] = BAR.sub("", out.data["text/html"])
            out["data"] = {k: v if k.startswith("image/") else elsewhere(v) for k, v in out["data"].items()}
            if not out.data or not out.data.get("text/html", "x").strip(): continue
            if set(out.data) == {"text/plain"} and "HBox(children" in out.data["text/plain"]: continue
        if out.output_type == "execute_result": out["execution_count"] = None
        if kept and out.output_type == kept[-1].output_type == "stream":     # in how many pieces it came is chance
            kept[-1] = nbformat.from_dict({**kept[-1], "text": kept[-1].text + out.text})
        else: kept.append(out)
    return kept


def said(outputs): return "".join(o.get("text", "") for o in outputs if o.output_type == "stream" and o.name == "stdout").strip()


class Reader:
    "Somebody who runs a page from top to bottom."
    def __init__(self, page, folder):
        self.page, self.nb = page, nbformat.read(NBS/f"{page}.ipynb", 4)
        self.client = NotebookClient(self.nb, timeout=600, resources={"metadata": {"path": str(folder)}})
        self.mistakes, self.seconds = [], {}

    def run(self, source):
        "Run code that is not on the page; returns its outputs."
        cell = nbformat.v4.new_code_cell(source)
        self.nb.cells.append(cell)
        try: self.client.execute_cell(cell, len(self.nb.cells) - 1)
        except CellExecutionError as e: self.mistakes.append(f"{self.page}: {source.splitlines()[0]!r} raised {str(e)[-300:]}")
        return self.nb.cells.pop().outputs

    def answer(self, ex):
        "Give wrong answers, then the solution, and note where the check did not tell them apart."
        check = "".join(self.nb.cells[ex.check].source)
        tell = lambda text: self.mistakes.append(f"{self.page}, exercise {ex.name!r}: {text}")
        if said(self.nb.cells[ex.check].outputs): tell("the check is not silent about the stub")
        if not ex.solution: return tell("no folded solution stands below the check")
        if len(ex.wrong) < 2: tell(f"tests/exercises/{self.page}.json has less than two wrong answers")
        for code, right in [*((w, False) for w in ex.wrong), (ex.solution, True)]:
            self.run(code)
            heard = said(self.run(check))
            if heard.startswith("right") is not right or not heard: tell(f"{heard!r} is the answer to {code!r}")
            if heard.startswith("right") and heard != "right": tell(heard)

    def read(self):
        "Run every cell; at each exercise try what readers may answer."
        todo = {e.check: e for e in exercises(self.nb.cells, self.page)}
        with self.client.setup_kernel(env=os.environ | {"MPLBACKEND": INLINE}):      # pytest's own has no pictures
            for i, cell in enumerate(self.nb.cells):
                if cell.cell_type != "code": continue
                cell.outputs = []
                self.client.execute_cell(cell, i)
                if i in todo: self.answer(todo[i])
        for cell in self.nb.cells:
            if cell.cell_type != "code": continue
            cell.outputs, cell["execution_count"], cell["metadata"] = cleaned(cell.outputs), None, setup_cells.metadata(cell)
        return self


# What is saved, beside what a run shows

def masked(outputs):
    "Outputs as lines in which numbers, hashes and spaces no longer count."
    lines = []
    for out in outputs:
        data = out.get("data", {})
        text = out.get("text") or data.get("text/markdown") or data.get("text/html") or data.get("text/plain", "")
        if any(k.startswith("image/") for k in data): text = "(picture)"
        text = re.sub(r"0x[0-9a-f]+|\bNaN\b|\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b|[-+]?\d[\d,.]*(?:e[-+]?\d+)?%?|\bnan\b|\binf\b", "#", "".join(text))
        text = re.sub(r"[█▁▂▃▄▅▆▇]+", "", text)
        text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "'...'", text)          # what a model writes differs with the rounding of a machine
        lines += [x for line in text.splitlines() if (x := re.sub(r"[\s\-─=]+", " ", line).strip())]
    return lines


def joined(lines):
    "Lines without spaces: where they break depends on lengths, and on which of two processes was first."
    return re.sub(r"\s", "", "".join(lines))


def stale(saved, fresh, page):
    "Cells whose saved outputs are not those of the run: (id, saved lines, fresh lines)."
    free = json.loads(VARIES.read_text(encoding="utf-8")).get(page, []) if VARIES.exists() else []
    return [(old.id, a, b) for old, new in zip(saved, fresh) if old.cell_type == "code" and old.id not in free
            and joined(a := masked(cleaned(old.outputs))) != joined(b := masked(new.outputs))]


def read(page, save=False):
    "Run a page; returns what is wrong with it, a sentence each."
    with tempfile.TemporaryDirectory() as folder: reader = Reader(page, folder).read()
    saved = nbformat.read(NBS/f"{page}.ipynb", 4)
    wrong = list(reader.mistakes)
    if save:
        text = json.dumps(json.loads(nbformat.writes(reader.nb)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        (NBS/f"{page}.ipynb").write_text(text, encoding="utf-8")
    else:
        wrong += [f"{page}, cell {i}: a run shows\n    {b}\n  and saved is\n    {a}\n  (python tests/pages.py --save {page})"
                  for i, a, b in stale(saved.cells, reader.nb.cells, page)]
    return wrong


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if a != "--save"] or course()
    mistakes = [m for page in names for m in read(page, "--save" in sys.argv)]
    print("\n".join(mistakes) or "all right")
    sys.exit(bool(mistakes))
