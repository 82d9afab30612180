"""The notebooks and what is made from them agree: modules, README, site pages. Quarto is not needed."""
import filecmp
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def call(*command, cwd, **env):
    ran = subprocess.run(command, cwd=cwd, text=True, timeout=580, stdin=subprocess.DEVNULL, env=os.environ | env,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_export_and_clean_change_nothing(repo_copy):
    call(BIN / "nbdev-export", cwd=repo_copy)
    call(BIN / "nbdev-clean", cwd=repo_copy)
    files = [p.relative_to(repo_copy) for part in ("nbs", "hfflow") for p in (repo_copy / part).rglob("*")
             if p.suffix in (".py", ".ipynb")]
    changed = [str(f) for f in files
               if not (ROOT / f).exists() or not filecmp.cmp(repo_copy / f, ROOT / f, shallow=False)]
    assert not changed, "edit the notebook, then run: make export"


def test_readme_is_the_index_page(repo_copy):
    before = (repo_copy / "README.md").read_text(encoding="utf-8")
    call("make", "-s", "readme", f"BIN={BIN}", cwd=repo_copy)
    assert (repo_copy / "README.md").read_text(encoding="utf-8") == before, "run: make readme"


@pytest.fixture(scope="module")
def site(repo_copy):
    "The pages as nbdev hands them to Quarto."
    call(sys.executable, "-c", "from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs;"
                               "refresh_quarto_yml(); proc_nbs('nbs', n_workers=0)", cwd=repo_copy, PYTHONPATH=str(repo_copy / "tests"))
    return repo_copy / "_proc"


def test_site_pages_are_made(repo_copy, site):
    pages = {p.relative_to(repo_copy / "nbs") for p in (repo_copy / "nbs").rglob("*.ipynb")}
    assert {p.relative_to(site) for p in site.rglob("*.ipynb")} == pages
    for name in ("_quarto.yml", "styles.css", "theme.html", "favicon.svg", "404.qmd", "images/card.png"): assert (site / name).exists(), name
    assert "hfflow.github.io" in (repo_copy / "nbs/nbdev.yml").read_text()


def headings(cells):
    text = "\n".join(house.source(c) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)


def test_no_page_loses_a_heading_or_says_one_twice(repo_copy, site):
    for page in house.pages(repo_copy / "nbs"):
        cells = json.loads((site / f"{page.name}.ipynb").read_text())["cells"]
        kept, hidden = headings(cells), {h for c in page.cells if re.search(r"^#\| *hide\b", house.source(c), re.M) for h in headings([c])}
        shown = re.sub(r"[^\w]", "", "".join(map(house.source, cells)))
        lost = [h for h in headings(page.cells)[1:] if h not in kept and h not in hidden and re.sub(r"[^\w]", "", h) not in shown]
        assert not lost, f"{page.name}: {lost}"
        documented = [m for c in cells for o in c.get("outputs", []) if "show_doc(" in house.source(c)
                      for m in re.findall(r"^### (\S+)", "".join(o.get("data", {}).get("text/markdown", "")), re.M)]
        twice = [m for m in documented if m in {k.strip("`") for k in kept} or documented.count(m) > 1]
        assert not twice, f"{page.name}: {twice}"


def test_a_source_link_leads_to_the_line(repo_copy, site):
    seen = 0
    for page in house.pages(repo_copy / "nbs"):
        for cell in json.loads((site / f"{page.name}.ipynb").read_text())["cells"]:
            for out in cell.get("outputs", []):
                text = "".join(out.get("data", {}).get("text/markdown", ""))
                assert not re.search(r"__main__(?!\.py)", text), text[:300]
                for file, line in re.findall(r"\[source\]\(https://github.com/hfflow/hfflow/blob/main/(\S+?)#L(\d+)\)", text):
                    said = re.match(r".*?show_doc\((\w+\.)*(\w+)", house.source(cell), re.S)[2]
                    assert file == f"hfflow/{page.module.replace('.', '/')}.py", f"{page.name}: {said} -> {file}"
                    there = (repo_copy / file).read_text().splitlines()[int(line) - 1:int(line) + 3]
                    assert any(re.search(rf"\b{said}\b", x) for x in there), f"{page.name}: {said} is not at {file}:{line}"
                    seen += 1
    assert seen > 500


def test_nothing_that_quarto_misreads(repo_copy):
    for page in house.pages(repo_copy / "nbs"):
        for cell in page.cells:
            text = house.source(cell)
            assert "{{<" not in text, f"{page.name}: Quarto takes {{{{< for a shortcode; write a space"
            if cell["cell_type"] == "code":
                yaml.safe_load("".join(f"{line}\n" for line in re.findall(r"(?m)^#\|\s*([\w-]+: .*)$", text)))      # or the site is not made
                pictures = any(kind.startswith("image/") for out in cell.get("outputs", []) for kind in out.get("data", {}))
                assert not pictures or "#| fig-alt: " in text, f"{page.name}: a plot has no alt text"
                continue
            assert page.name == "index" or not any(re.fullmatch(r"\[!\[.*", part.strip()) for part in text.split("\n\n")), f"{page.name}: a badge alone in its paragraph becomes a figure"
            prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
            assert not re.search(r"\]\([\w/.]*\.html", prose), f"{page.name}: link to the notebook, not to the page made of it"
            assert not re.search(r"\$[^$]*\\\\\\\\[a-zA-Z][^$]*\$", prose), f"{page.name}: a formula is escaped twice"
            for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose):
                assert alt.strip(), f"{page.name}: {target} has no alt text"
                if "://" not in target: assert (page.path.parent / target).exists(), target
