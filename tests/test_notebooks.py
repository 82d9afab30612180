"""Every page that `test_course` does not read runs alone, top to bottom, in an empty folder, under nbdev's own runner."""
import functools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
# In reading order, except that the longest go first, so that two workers finish together.
LONG = ["11_plan", "10_train", "16_flow", "16a_reviews", "engine/23_base", "18_compute", "engine/39_shard", "engine/51_memory"]
NAMES = sorted((p.relative_to(NBS).with_suffix("").as_posix() for p in NBS.rglob("*.ipynb")
                if not any(part.startswith((".", "_")) for part in p.relative_to(NBS).parts)
                and (p.parent != NBS or p.stem not in pages.course() or os.environ.get("HFFLOW_ALL_PAGES"))),
               key=lambda n: (LONG.index(n) if n in LONG else len(LONG), n))
FLAGS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]["tst_flags"].split())
RUN = "import sys; from nbdev.test import test_nb; sys.exit(not test_nb(sys.argv[1], skip_flags=sys.argv[2:])[0])"


@functools.cache
def skipped():
    "Flags of the cells that this machine cannot run."
    from hfflow.engine.compiled import compiler_missing
    runs = {"gpu": bool(shutil.which("nvidia-smi")), "compiler": compiler_missing() is None}
    return sorted(flag for flag in FLAGS if not runs.get(flag))


@pytest.mark.parametrize("name", NAMES)
def test_notebook(name, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = shutil.copy(NBS / f"{name}.ipynb", folder)
    ran = subprocess.run([sys.executable, "-c", RUN, notebook, *skipped()], cwd=folder, text=True, timeout=580,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env={k: v for k, v in os.environ.items() if not k.startswith("HF_")})   # a page connects by itself
    assert ran.returncode == 0, ran.stdout[-6000:]
