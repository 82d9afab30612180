"""What `pip install hfflow` gives: built from a clean copy, installed alone, run from an empty folder."""
import json
import os
import re
import site
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytestmark = pytest.mark.slow


def call(*command, cwd, **env):
    ran = subprocess.run(command, cwd=cwd, text=True, timeout=300, stdin=subprocess.DEVNULL, env={**os.environ, **env},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.returncode == 0, ran.stdout[-4000:]
    return ran.stdout


@pytest.fixture(scope="module")
def dist(repo_copy):
    "The folder with sdist and wheel; the wheel is built from the sdist."
    call(sys.executable, "-m", "build", "--no-isolation", cwd=repo_copy)
    return repo_copy / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    "Python of an environment that has the wheel, and sees this environment's libraries but not this clone."
    folder = tmp_path_factory.mktemp("alone")
    call(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    python = folder / "venv/bin/python"
    wheel = next(dist.glob("*.whl"))
    call(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel), cwd=folder)
    target = call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    for number, path in enumerate(site.getsitepackages()):
        (folder / target / f"libraries{number}.pth").write_text(path + "\n")   # its own .pth files are not followed
    (folder / "empty").mkdir()
    return python, folder / "empty"


def test_the_wheel_carries_everything(dist, repo_copy):
    wheel = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    source = {p.relative_to(repo_copy).as_posix() for p in (repo_copy / "hfflow").rglob("*")
              if p.is_file() and "__pycache__" not in p.parts}
    assert source - wheel == set(), "not in the wheel: name it in setup.py's package_data"
    assert not [n for n in wheel if n.startswith(("tests/", "nbs/"))]
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {n.split("/", 1)[-1] for n in sdist.getnames()}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE"} | source <= names


def test_the_metadata_says_what_settings_ini_says(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    assert "Requires-Dist: transformers>=" in metadata and 'extra == "dev"' in metadata
    extras = {e: {re.split(r"[^\w.-]", r)[0] for r in re.findall(f"Requires-Dist: (.*); extra == \"{e}\"", metadata)} for e in ("metrics", "track", "all")}
    assert "scikit-learn" in extras["metrics"] and extras["track"] and extras["all"] == {"hfflow"}
    assert 'hfflow[metrics,serve,spaces,track,train]; extra == "all"' in metadata
    assert 'torch>=2.6; extra == "train"' in metadata and 'Requires-Dist: huggingface_hub>=1.27\n' in metadata
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3." in metadata


def test_it_runs_from_an_empty_folder(installed):
    python, empty = installed
    where = call(python, "-c", "import hfflow; print(hfflow.__file__)", cwd=empty)
    assert str(python.parent.parent) in where
    shown = call(python.parent / "hfflow", "--help", cwd=empty)
    for word in ("course", "run", "plan", "data", "train", "evaluate", "publish", "space", "serve", "hub", "doctor", "lineage", "init"):
        assert word in shown
    assert not list(empty.iterdir())      # and leaves nothing behind


def test_its_files_are_found(installed, tmp_path):
    python, empty = installed
    assert "pages copied" in call(python.parent / "hfflow", "course", "--copy", "--into", "learn", cwd=tmp_path)
    assert (tmp_path / "learn/00_start.ipynb").exists() and (tmp_path / "learn/images/start-model-light.png").exists()
    assert "All pages are in" in call(python.parent / "hfflow", "course", "--copy", "--into", "learn", cwd=tmp_path)
    shown = call(python.parent / "hfflow", "init", "my-project", cwd=tmp_path)
    assert "my-project" in shown and (tmp_path / "my-project/.github/workflows").is_dir()
    code = "from hfflow import hub; h = hub.connect(); print(h.api.model_info('hfflow/tiny-llama').sha); hub.stop()"
    assert len(call(python, "-c", code, cwd=empty, HFFLOW_HOME=str(tmp_path / "home")).split()[-1]) == 40


def test_the_flow_runs_there(installed, tmp_path):
    "The whole flow from the wheel alone, with a short training; the Space is pushed and not started."
    python, empty = installed
    report = tmp_path / "report.json"
    settings = [x for s in ("train.max_steps=4", "evaluate.limit=4", "space.try_it=false", "publish.if=always") for x in ("--set", s)]
    call(python.parent / "hfflow", "run", "--report", report, *settings, cwd=empty, HFFLOW_HOME=str(tmp_path / "home"))
    call(python.parent / "hfflow", "hub", "stop", cwd=empty, HFFLOW_HOME=str(tmp_path / "home"))
    found = json.loads(report.read_text())
    assert [a["kind"] for a in found["artifacts"]] == ["dataset", "model", "space"]
    assert {s["status"] for s in found["stages"]} == {"done"}
