"""The house rules that a machine can check: pages, modules, sidebar."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
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
    assert not re.search(r"^# ", "\n".join(source(c) for c in cells(path)[1:] if c["cell_type"] == "markdown"
                                           and not source(c).startswith("```")), re.M) or path.stem == "index"
    badge = f"https://colab.research.google.com/github/hfflow/hfflow/blob/main/nbs/{name(path)}.ipynb"
    assert any(badge in source(c) for c in cells(path)[:6]), "the Colab badge stands in the first cells"
    if path in CHAPTERS: assert any("google.colab" in source(c) for c in cells(path)[:8] if c["cell_type"] == "code")


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
    chapters = [x for x in listed if re.match(r"\d\d", x)]
    assert chapters == sorted(chapters), "the numbers are the reading order"
    assert site["metadata-files"] == ["nbdev.yml"] and site["execute"] == {"enabled": False}
    for item in site["website"]["navbar"]["left"]: assert (NBS / item["href"]).exists()
    assert (NBS / "_quarto.yml").is_symlink() and (NBS / site["format"]["html"]["css"]).exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_links_between_pages_lead_somewhere(path):
    for cell in cells(path):
        if cell["cell_type"] != "markdown": continue
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", source(cell)):
            if "://" not in target: assert (path.parent / target).exists(), target


# Modules

def test_every_chapter_has_its_module_and_every_module_its_chapter():
    made = {module_file(m) for p in CHAPTERS if (m := exported(p))}
    assert all(f.exists() for f in made), [str(f) for f in made if not f.exists()]
    written = {p for p in LIB.rglob("*.py") if p.name not in {"_modidx.py", "__init__.py"} and "templates" not in p.parts}
    assert written == made, "the notebooks are the source"


def imports(file, top=False):
    "Modules that a file imports, absolute; with `top`, only when it is imported itself."
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for n in ast.walk(f)}
    typing = {n for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.dump(f.test) for n in ast.walk(f)}
    package = ("hfflow", *file.relative_to(LIB).parts[:-1])
    for node in ast.walk(tree):
        if top and (node in inside or node in typing): continue
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            yield from ([stem] if stem and stem != "hfflow" else [])
            if stem in ("hfflow", "hfflow.localhub", "hfflow.engine"): yield from (f"{stem}.{a.name}" for a in node.names)


def order():
    "Modules in the order in which they may import one another: the engine's by the numbers of their pages, then the course's."
    pages = sorted(CHAPTERS, key=lambda p: (not name(p).startswith("engine/"), name(p)))
    return [m for p in pages if (m := exported(p)) and not m.startswith("localhub")]


@pytest.mark.parametrize("module", order())
def test_a_module_imports_only_earlier_ones(module):
    names = order()
    used = {i.removeprefix("hfflow.") for i in imports(module_file(module)) if i.startswith("hfflow.")}
    assert not used & set(names[names.index(module):]), used & set(names[names.index(module):])
    assert not any(i.startswith("localhub") for i in used) or module == "engine.hub_commands", "the flow meets the embedded Hub only at HTTP"


@pytest.mark.parametrize("file", sorted((LIB / "localhub").rglob("*.py")), ids=lambda p: p.stem)
def test_the_embedded_hub_knows_nothing_of_the_flow(file):
    used = {i for i in imports(file) if i.startswith("hfflow") and i != "hfflow"}
    assert all(i.startswith("hfflow.localhub") or i == "hfflow.__version__" for i in used), used
    clients = {"torch", "transformers", "huggingface_hub", "datasets"} - ({"datasets"} if file.stem == "viewer" else set())
    assert not {i.split(".")[0] for i in imports(file)} & clients, "only the viewer asks a client library, `datasets`, for its rules"


@pytest.mark.parametrize("file", [p for p in sorted(LIB.rglob("*.py")) if "templates" not in p.parts], ids=lambda p: p.stem)
def test_nothing_heavy_is_imported_at_the_top(file):
    assert not {i.split(".")[0] for i in imports(file, top=True)} & HEAVY


def test_importing_every_chapter_loads_nothing_heavy():
    code = ("import sys, importlib; [importlib.import_module('hfflow.' + m) for m in sys.argv[2:]];"
            "print(sorted(set(sys.argv[1].split(',')) & set(sys.modules)))")
    ran = subprocess.run([sys.executable, "-c", code, ",".join(HEAVY), *order()], text=True, capture_output=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


@pytest.mark.parametrize("module", order())
def test_exported_names_are_documented(module):
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                   and getattr(n.targets[0], "id", "") == "__all__"), [])
    assert public, "exports nothing"
    bare = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public
            and not ast.get_docstring(n)]
    assert not bare, bare
