"""The notebooks and what is made from them agree: modules, README, site pages. Quarto is not needed."""
import filecmp
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def call(*command, cwd):
    ran = subprocess.run(command, cwd=cwd, text=True, timeout=300, stdin=subprocess.DEVNULL,
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


def test_site_pages_are_made(repo_copy):
    call(sys.executable, "-c", "from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs;"
                               "refresh_quarto_yml(); proc_nbs('nbs', n_workers=0)", cwd=repo_copy)
    pages = {p.relative_to(repo_copy / "nbs") for p in (repo_copy / "nbs").rglob("*.ipynb")}
    assert {p.relative_to(repo_copy / "_proc") for p in (repo_copy / "_proc").rglob("*.ipynb")} == pages
    assert (repo_copy / "_proc/_quarto.yml").exists() and (repo_copy / "_proc/styles.css").exists()
    assert "hfflow.github.io" in (repo_copy / "nbs/nbdev.yml").read_text()
