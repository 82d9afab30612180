"""What the house rules look at: the wings, their pages and modules, and who imports what."""
import ast
import json
import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# lines of an exported cell, and exported lines without anything shown; a module's lines
LIMITS = {"course": (25, 40), "engine": (30, 80), "localhub": (30, 80)}
MODULE = 500


@dataclass(frozen=True)
class Page:
    "A notebook: its cells as dicts, and the module that it exports."
    path: Path
    root: Path                              # `nbs`

    @property
    def name(self): return self.path.relative_to(self.root).with_suffix("").as_posix()
    @property
    def wing(self): return wing_of(self.name.replace("/", "."))
    @property
    def cells(self): return json.loads(self.path.read_text(encoding="utf-8"))["cells"]
    @property
    def module(self): return next((m[1] for c in self.cells if (m := re.search(r"^#\| *default_exp +(\S+)", source(c), re.M))), None)


def wing_of(module):
    "course, engine or localhub, of a dotted name below the package."
    first = module.split(".")[0]
    return first if first in ("engine", "localhub") else "course"


def source(cell): return "".join(cell["source"])


def is_export(cell): return cell["cell_type"] == "code" and bool(re.search(r"^#\| *export", source(cell), re.M))


def pages(root=ROOT/"nbs"):
    return [Page(p, root) for p in sorted(root.rglob("*.ipynb")) if not any(q.startswith((".", "_")) for q in p.relative_to(root).parts)]


def modules(lib=ROOT/"hfflow"):
    "The modules of the package: dotted name -> file."
    return {".".join(p.relative_to(lib).with_suffix("").parts): p for p in sorted(lib.rglob("*.py"))
            if p.name not in ("__init__.py", "_modidx.py") and "templates" not in p.parts}


# Cells

def only_imports(cell):
    "Whether a code cell holds imports and nothing else."
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source(cell)).body)


def sizes(cells):
    "Lines of the longest exported cell, and the most exported lines in a row after which nothing was shown; imports do not count."
    longest = stretch = most = 0
    for cell in cells:
        if is_export(cell):
            if only_imports(cell): continue
            lines = sum(not line.startswith("#|") for line in source(cell).splitlines())
            longest, stretch = max(longest, lines), stretch + lines
            most = max(most, stretch)
        elif cell.get("outputs"): stretch = 0
    return longest, most


# Modules

def imported(module, text, known):
    "What a module takes from others of the package: (their dotted name, the name taken or None), from all its code."
    tree, here = ast.parse(text), ["hfflow", *module.split(".")[:-1]]
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith("hfflow.") and (m := a.name[7:]) in known:
                    yield m, None
                    if a.asname: names[a.asname] = m
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem.split(".")[0] != "hfflow": continue
            for a in node.names:
                whole = f"{stem}.{a.name}"[7:]
                if whole in known: yield whole, None; names[a.asname or a.name] = whole
                elif stem[7:] in known: yield stem[7:], a.name
    for node in ast.walk(tree):                      # `module._name`
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            yield names[node.value.id], node.attr


def arrows(texts):
    "Who imports whom: dotted name -> set of dotted names, of {dotted name: text}."
    return {m: {other for other, _ in imported(m, text, texts) if other != m} for m, text in texts.items()}


def circle(graph):
    "The modules of a circle, or None."
    try: TopologicalSorter(graph).prepare()
    except CycleError as e: return e.args[1]


def wrong_arrows(graph):
    "Arrows from one wing into another that it must not know."
    allowed = {"course": {"course", "engine"}, "engine": {"engine"}, "localhub": {"localhub"}}
    gates = {("engine.hub_commands", "localhub")}    # the commands that open the Hub's folder while no server runs
    return [(m, other) for m, others in graph.items() for other in sorted(others)
            if wing_of(other) not in allowed[wing_of(m)] and (m, wing_of(other)) not in gates]


def private_names(texts):
    "Underscore names that a module takes from another one."
    return sorted({(m, other, name) for m, text in texts.items() for other, name in imported(m, text, texts)
                   if name and other != m and name.startswith("_") and not name.startswith("__")})


def defined(text):
    "Public names that a module defines itself, without those that it takes from others."
    tree = ast.parse(text)
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                   and getattr(n.targets[0], "id", "") == "__all__"), [])
    made = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    for n in tree.body:
        for t in n.targets if isinstance(n, ast.Assign) else [n.target] if isinstance(n, ast.AnnAssign) else []:
            made |= {x.id for x in ast.walk(t) if isinstance(x, ast.Name)}
    return made & set(public)


def namesakes(texts):
    "Public names that two modules define: name -> modules."
    found = {}
    for m, text in texts.items():
        for name in defined(text): found.setdefault(name, []).append(m)
    return {name: ms for name, ms in sorted(found.items()) if len(ms) > 1}
