"""What the site's build changes on a page after nbdev: links to the right source, no heading twice, Mermaid drawn.

Named in `pyproject.toml` (`doc_procs`); `make docs` puts this folder on Python's path."""
import ast
import re
from functools import cache
from pathlib import Path
from textwrap import dedent

import house
from nbdev.process import Processor

ROOT = Path(__file__).parents[1]
REPO = "https://github.com/hfflow/hfflow/blob/main/"


@cache
def lines(module):
    "Where a module defines what: name -> line; methods as `Class.name`."
    file = ROOT/"hfflow"/f"{module.replace('.', '/')}.py"
    if not file.exists(): return {}
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        name = getattr(node, "name", None)
        if name is None: continue
        found[name] = node.lineno
        if isinstance(node, ast.ClassDef): found |= {f"{name}.{n.name}": n.lineno for n in node.body if hasattr(n, "name")}
        elif node.args.args and isinstance(node.args.args[0].annotation, ast.Name):       # @patch
            found.setdefault(f"{node.args.args[0].annotation.id}.{name}", node.lineno)
    return found


def documented(text, module):
    "What nbdev says of a symbol, without its own rule, and with a link into this page's module."
    name = re.search(r"^### (\S+)", text, re.M)
    line = lines(module).get(name[1]) if name else None
    if line: text = re.sub(r"\[source\]\([^)]*\)", f"[source]({REPO}hfflow/{module.replace('.', '/')}.py#L{line})", text)
    text = re.sub(r"\A---\n+", "", text)
    text = re.sub(r"\x08\n((?:.*\S.*\n?)+)", lambda m: f"```\n{dedent(m[1]).rstrip()}\n```\n", text)      # Typer's mark of lines to be kept as they are
    return re.sub(r"""(["'])'([\w.\[\], |]+)'\1""", r"\2", re.sub(r"__main__\.(?!py)", "", text).replace(f"hfflow.{module}.", ""))


def boxed(text):
    "The home page's boxes, which stand in comments so that Jupyter and GitHub show plain text."
    def box(found):
        inside = re.sub(r"\*\*(\[[^\]]+\]\([^)]+\))\*\*<!-- button -->", r"\1{.button}", found[2])
        if found[1] == "cards": inside = "".join(f"\n::: {{}}\n### {part.strip()}\n:::\n" for part in inside.split("### ")[1:])
        return f"::: {{.{found[1]}}}\n{inside}\n:::"
    return re.sub(r"<!-- (hero|cards) -->\n(.*?)\n<!-- end -->", box, text, flags=re.S)


class SitePages(Processor):
    "Mend what nbdev makes of a page."
    def end(self):
        module = next((p.module for p in house.pages() if p.path.name == Path(self.nb.path_).name and p.path.parent.name == Path(self.nb.path_).parent.name), None)
        said = set()        # headings so far
        for cell in self.nb.cells:
            if cell.cell_type == "markdown":
                cell.source = boxed(cell.source.replace("```mermaid", "```{mermaid}"))
                said |= {*re.findall(r"^#+ +`?([^`\n]+?)`? *$", cell.source, re.M)}
            # nbdev runs a page's imports for its signatures: what they say about the building machine is nobody's business
            if "outputs" in cell: cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            if not cell.source.strip().split("\n")[-1].startswith("show_doc("): continue
            for out in cell.get("outputs", []):
                text = "".join(out.get("data", {}).get("text/markdown", ""))
                if not text: continue
                text = documented(text, module or "")
                title = re.search(r"^### (\S+)\n+", text, re.M)
                if title and title[1] in said: text = text.replace(title[0], "")
                elif title: said.add(title[1])
                out["data"]["text/markdown"] = text
