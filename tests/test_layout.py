"""The house rules that a machine can check: pages, modules, sidebar."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
import setup_cells
import yaml

ROOT = Path(__file__).parents[1]
NBS, LIB = ROOT / "nbs", ROOT / "hfflow"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.relative_to(NBS).parts))
CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "huggingface_hub", "matplotlib", "gradio",
         "pandas", "numpy", "pyarrow", "tokenizers", "safetensors"}
HIDDEN_DIRECTIVES = ("notest", "eval: false", "eval:false", "skip_exec")


def name(path): return path.relative_to(NBS).with_suffix("").as_posix()


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell): return "".join(cell["source"])


def exported(path):
    "The module a notebook exports, as a dotted name below the package, or None."
    for cell in cells(path):
        if found := re.search(r"^#\| *default_exp +(\S+)", source(cell), re.M): return found[1]


def module_file(module): return LIB / (module.replace(".", "/") + ".py")


def outputs(path):
    for cell in cells(path):
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            for kind, value in [("text", out.get("text")), *data.items()]:
                if value is not None: yield kind, out, "".join(value) if isinstance(value, list) else value


# Pages

@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_page_opens_as_every_page_does(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n+> \S", source(first)), "cell 1: # Title and > promise"
    prose = "\n".join(source(c) for c in cells(path)[1:] if c["cell_type"] == "markdown")
    assert not re.search(r"^# ", re.sub(r"^```.*?^```", "", prose, flags=re.M | re.S), re.M) or path.stem == "index"
    badge = f"https://colab.research.google.com/github/hfflow/hfflow/blob/main/nbs/{name(path)}.ipynb"
    assert any(badge in source(c) for c in cells(path)[:6]), "the Colab badge stands in the first cells"
    if path in CHAPTERS: assert any("google.colab" in source(c) for c in cells(path)[:8] if c["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_the_install_line_is_the_one_in_settings(path):
    text = path.read_text(encoding="utf-8")
    assert setup_cells.installing(text) == text, "write it with: python tests/setup_cells.py --write"
    where = setup_cells.install_from()
    if path in CHAPTERS: assert where in text
    planted = text.replace(f" @ {where}", "") if where else text
    assert planted == text or setup_cells.installing(planted) == text, "a line without its address is seen"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_what_sets_a_page_up_is_folded_in_jupyterlab_and_colab(path):
    text = path.read_text(encoding="utf-8")
    assert setup_cells.folding(text) == text, "mend it with: python tests/setup_cells.py --write"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_page_hides_nothing_from_the_tests(path):
    for cell in cells(path):
        if cell["cell_type"] != "code": continue
        directives = [line for line in source(cell).splitlines() if line.startswith("#|")]
        assert not any(word in line for line in directives for word in HIDDEN_DIRECTIVES), directives
        assert "if False:" not in source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_imports_stand_in_cells_of_their_own(path):
    "The site's build executes cells with imports in a fresh namespace: other code in them fails there, or warns."
    plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.If)
    for cell in cells(path):
        if cell["cell_type"] != "code" or re.search(r"^#\| *export", source(cell), re.M): continue
        try: body = ast.parse(source(cell)).body
        except SyntaxError: continue                             # a magic of IPython
        if any(isinstance(n, plain[:2]) for n in body): assert all(isinstance(n, plain) for n in body), source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_outputs_are_fit_to_be_read(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"], "GitHub does not render notebooks with widget state"
    assert book["metadata"].get("kernelspec", {}).get("name", "python3") == "python3"
    private = re.compile(r"(?<![\w.])/(home|root|Users|tmp|private|work)/|[A-Z]:\\Users|\bhf_[A-Za-z0-9]{20,}|"
                         + re.escape(str(ROOT)))
    for kind, out, text in outputs(path):
        assert "widget" not in kind and out["output_type"] != "error", kind
        assert out.get("name") != "stderr", text[:300]
        if kind.startswith("image/"): continue
        assert not private.search(text), private.search(text)[0]
        assert "\r" not in text and not re.search(r"\d+%\|", text), "a progress bar was saved"
        if kind in ("text", "text/plain"): assert text.count("\n") <= 30, f"{text.count(chr(10))} lines: {text[:80]}"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *LIB.rglob("*.py"), *ROOT.glob("*.*")], ids=lambda p: p.name)
def test_no_path_or_token_of_a_machine_is_written_down(path):
    if not path.is_file() or path.suffix in {".png", ".safetensors"}: return
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) + "/" not in text and (len(str(Path.home())) < 5 or str(Path.home()) + "/" not in text)
    assert not re.search(r"\bhf_[A-Za-z]{34}\b", text)


# Sidebar and site

def test_every_page_stands_in_the_sidebar_in_reading_order():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())

    def walk(items):
        for item in items:
            if isinstance(item, str): yield item
            else:
                if "href" in item: yield item["href"]
                yield from walk(item.get("contents", []))

    listed = list(walk(site["website"]["sidebar"]["contents"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {p.relative_to(NBS).as_posix() for p in NOTEBOOKS}
    for wing in ("", "engine/", "localhub/"):
        numbered = [x for x in listed if re.fullmatch(wing + r"\d\d[^/]*", x)]
        assert numbered == sorted(numbered, key=lambda x: x.split("_")[0]), "the numbers are the reading order"
    assert site["metadata-files"] == ["nbdev.yml"] and site["execute"] == {"enabled": False}
    for item in site["website"]["navbar"]["left"]: assert (NBS / item["href"]).exists()
    assert (NBS / "_quarto.yml").is_symlink() and (NBS / site["format"]["html"]["css"]).exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_links_between_pages_lead_somewhere(path):
    for cell in cells(path):
        if cell["cell_type"] != "markdown": continue
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", source(cell)):
            if "://" not in target: assert (path.parent / target).exists(), target


# The house: three wings, arrows one way, small cells. `house.py` says what is looked at.

TEXTS = {m: f.read_text(encoding="utf-8") for m, f in house.modules().items()}
PAGES = house.pages()
FLOW = {m: t for m, t in TEXTS.items() if house.wing_of(m) != "localhub"}
# The embedded Hub's pages and modules as they stand: they may shrink, and not grow.
STANDS = json.loads((Path(__file__).parent/"localhub/limits.json").read_text())
# Two things of one name, each the usual word of its field: a command is called as what it runs; a Space, an endpoint and
# the Hub are started; a config and a data set are loaded; a model and a Space are pushed; answers and plans are compared;
# a server and the command line each are an app with a main.
NAMESAKES = {name: {"engine.flow_commands", home} for name, home in dict(
    evaluate="engine.reports", init="engine.project", lineage="engine.tracing", plan="engine.planning",
    run="engine.running", serve="engine.openai").items()} | dict(
    app={"engine.commands", "engine.openai"}, main={"engine.commands", "engine.openai"},
    compare={"engine.figures", "engine.planning"}, load={"engine.flowconfig", "engine.register"},
    push={"engine.pushing", "engine.spacefiles"}, start={"engine.process", "engine.runner", "engine.serving"})


def test_every_page_has_its_module_and_every_module_its_page():
    made = {p.module for p in PAGES if p.module}
    assert set(TEXTS) == made, "the notebooks are the source"
    for page in PAGES:
        if page.module: assert house.wing_of(page.module) == page.wing, f"{page.name} exports {page.module}"


def test_arrows_go_one_way():
    graph = house.arrows(TEXTS)
    assert not house.wrong_arrows(graph), "course -> engine; the embedded Hub knows nobody, and is met at HTTP"
    assert not house.circle(graph)


@pytest.mark.parametrize("wing", house.LIMITS)
def test_a_page_uses_only_pages_before_it(wing):
    "The numbers are the reading order, and what a page needs was explained before."
    order = [p.module for p in sorted(PAGES, key=lambda p: p.path.name.split("_")[0]) if p.module and p.wing == wing]
    graph = house.arrows(TEXTS)
    late = [(m, other) for i, m in enumerate(order) for other in graph[m] if other in order[i:] and m != "cli"]
    assert not late, late


def test_no_private_name_crosses_modules():
    assert not house.private_names(TEXTS)


def test_no_two_things_of_one_name():
    found = {n: ms for n, ms in house.namesakes(FLOW).items() if set(ms) != NAMESAKES.get(n)}
    assert not found, found
    hub = house.namesakes({m: t for m, t in TEXTS.items() if m not in FLOW})
    assert set(hub) <= set(STANDS["namesakes"]), set(hub) - set(STANDS["namesakes"])


@pytest.mark.parametrize("module", TEXTS)
def test_a_module_is_one_idea(module):
    lines = TEXTS[module].count("\n")
    assert lines <= house.MODULE, f"{lines} lines"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_cells_are_small_and_tried_at_once(page):
    cell, stretch = house.sizes(page.cells)
    most = STANDS["pages"].get(page.name, house.LIMITS[page.wing])
    assert cell <= most[0], f"an exported cell has {cell} lines, at most {most[0]}"
    assert stretch <= most[1], f"{stretch} exported lines before something is shown, at most {most[1]}"


def test_the_house_rules_see_a_violation():
    "Each rule, on a house with one thing wrong."
    good = {"train": "from .engine.loop import Loop", "engine.loop": "class Loop: pass", "core": ""}
    assert not house.wrong_arrows(house.arrows(good)) and not house.circle(house.arrows(good))
    up = good | {"engine.loop": "def f():\n    from hfflow.train import fit"}
    assert house.wrong_arrows(house.arrows(up)) == [("engine.loop", "train")] and house.circle(house.arrows(up))
    alias = good | {"engine.loop": "from hfflow import train\ntrain.fit"}
    assert house.wrong_arrows(house.arrows(alias)) == [("engine.loop", "train")]
    below = good | {"engine.loop": "from ..core import Artifact"}
    assert house.wrong_arrows(house.arrows(below)) == [("engine.loop", "core")]
    hub = good | {"localhub.store": "import hfflow.core"}
    assert house.wrong_arrows(house.arrows(hub)) == [("localhub.store", "core")]
    assert house.private_names(good | {"train": "from .engine.loop import _Loop"}) == [("train", "engine.loop", "_Loop")]
    assert house.private_names(good | {"train": "def f():\n    from hfflow.engine import loop as l\n    l._x"}) == [("train", "engine.loop", "_x")]
    twice = {"a": "__all__ = ['f']\ndef f(): pass", "b": "__all__ = ['f']\nf = 1", "c": "from .a import f\n__all__ = ['f']"}
    assert house.namesakes(twice) == {"f": ["a", "b"]}
    def code(text, shown=False): return dict(cell_type="code", source=[text], outputs=[1] if shown else [])
    cells = [code("#| exports\n" + "x = 1\n" * 20), code("1", True), code("#| exports\n" + "x = 1\n" * 20), code("2"), code("#| export\n" + "x = 1\n" * 25)]
    assert house.sizes(cells) == (25, 45)


def test_one_style_of_code():
    "Quotes, spaces and undefined names, as pyproject.toml says; `ruff check --fix nbs` mends most of it."
    ran = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"], cwd=ROOT, text=True,
                         capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("file", sorted((LIB / "localhub").rglob("*.py")), ids=lambda p: p.stem)
def test_the_embedded_hub_needs_no_client(file):
    clients = {"torch", "transformers", "huggingface_hub", "datasets"} - ({"datasets"} if file.stem in ("splits", "shards") else set())
    assert not set(imports(file)) & clients, "only the splits are found and read by a client library, `datasets`, whose rules they are"


def imports(file, top=False):
    "Packages that a file imports; with `top`, only when it is imported itself."
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for n in ast.walk(f)}
    typing = {n for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.dump(f.test) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if top and (node in inside or node in typing): continue
        if isinstance(node, ast.Import): yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


@pytest.mark.parametrize("file", [p for p in sorted(LIB.rglob("*.py")) if "templates" not in p.parts], ids=lambda p: p.stem)
def test_nothing_heavy_is_imported_at_the_top(file):
    assert not set(imports(file, top=True)) & HEAVY


def test_importing_every_module_loads_nothing_heavy():
    code = ("import sys, importlib; [importlib.import_module('hfflow.' + m) for m in sys.argv[2:]];"
            "print(sorted(set(sys.argv[1].split(',')) & set(sys.modules)))")
    ran = subprocess.run([sys.executable, "-c", code, ",".join(HEAVY), *FLOW], text=True, capture_output=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


@pytest.mark.parametrize("module", FLOW)
def test_exported_names_are_documented(module):
    tree = ast.parse(FLOW[module])
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                   and getattr(n.targets[0], "id", "") == "__all__"), [])
    assert public, "exports nothing"
    bare = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public
            and not ast.get_docstring(n)]
    assert not bare, bare
