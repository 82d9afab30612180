"""`pip install hfflow`, and nothing more: the command, the client and the Hub work, and what needs an extra says which."""
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "gradio", "peft", "bitsandbytes", "datasets", "accelerate", "pandas", "numpy", "pyarrow", "duckdb", "matplotlib"}


def closure(name, extras=(), seen=None):
    "The distributions that pip would install for a package, by their names."
    seen = {} if seen is None else seen
    dist = distribution(name)
    key = (dist.metadata["Name"].lower().replace("_", "-"), tuple(sorted(extras)))
    if key in seen: return seen
    seen[key] = dist
    for line in dist.requires or ():
        r = Requirement(line)
        if not r.marker or any(r.marker.evaluate({"extra": e}) for e in ("", *extras)): closure(r.name, r.extras, seen)
    return seen


@pytest.fixture(scope="module")
def needed():
    "name -> distribution of everything that `pip install hfflow` brings, hfflow itself left out."
    found = {name: dist for (name, _), dist in closure("hfflow").items()}
    del found["hfflow"]
    return found


@pytest.fixture(scope="module")
def base(needed, tmp_path_factory):
    "An environment that holds those packages, by links to their files, and this checkout."
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    for dist in needed.values():
        for file in dist.files or ():
            top = Path(file).parts[0]
            if top != ".." and top != "__pycache__" and not (site / top).exists(): (site / top).symlink_to(Path(dist.locate_file(top)).resolve())
    info = Path(distribution("hfflow")._path)        # its metadata says which extra brings what
    (site / info.name).symlink_to(info.resolve())
    (site / "hfflow.pth").write_text(f"{ROOT}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF", "PYTHON"))} | {"HFFLOW_HOME": str(folder / "home")}
    work = folder / "work"
    work.mkdir()

    def call(*args):
        "Python with these arguments: exit code, and what it printed."
        ran = subprocess.run([folder / "venv/bin/python", *args], cwd=work, env=env, text=True, timeout=120, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return ran.returncode, ran.stdout

    started = call("-c", COMMAND, "hub", "start")     # for each test, in whatever order and process they come
    assert started[0] == 0, started
    yield call
    call("-c", COMMAND, "hub", "stop")


COMMAND = "import sys; from hfflow.cli import main; sys.exit(main())"


def test_the_base_is_small(needed):
    assert not HEAVY & set(needed), HEAVY & set(needed)
    files = [Path(f.locate()) for d in needed.values() for f in d.files or () if f.suffix != ".pyc"]
    size = sum(f.stat().st_size for f in files if f.is_file())
    assert size < 90e6, f"{size / 1e6:.0f} MB"
    assert {"huggingface-hub", "starlette", "pygit2", "typer"} <= set(needed)


def test_nothing_heavy_is_there(base):
    code, out = base("-c", f"from importlib.util import find_spec; print([m for m in {sorted(HEAVY)} if find_spec(m)])")
    assert (code, out.strip()) == (0, "[]")


def test_the_hub_works(base):
    code, out = base("-c", """
from hfflow import hub
me = hub.connect()
me.api.create_repo('you/table', repo_type='dataset')
done = me.api.upload_file(path_or_fileobj=b'a,b\\n1,2\\n', path_in_repo='t.csv', repo_id='you/table', repo_type='dataset')
from huggingface_hub import hf_hub_download
print(open(hf_hub_download('you/table', 't.csv', repo_type='dataset', revision=done.oid)).read())
print(sorted(m.id for m in me.api.list_models()), hub.Artifact.at('dataset', 'you/table').revision == done.oid)
import httpx
for page in ('/', '/datasets/you/table', '/hfflow/tiny-llama', '/datasets/you/table/commits/main'):
    assert httpx.get(me.endpoint + page).status_code == 200, page
print(httpx.get(me.endpoint + '/datasets/you/table/viewer').text)
""")
    assert code == 0, out
    assert "a,b\n1,2" in out and "['hfflow/tiny-bert', 'hfflow/tiny-llama'] True" in out
    assert "Reading rows needs the package `datasets`" in out and "hfflow[data]" in out


@pytest.mark.parametrize("line, code, says", [
    ("--help", 0, "hfflow"), ("version", 0, r"\d+\.\d+"), ("hub start", 0, "http://127"), ("hub status", 0, "http://127"), ("hub check", 0, ""),
    ("lineage hfflow/tiny-llama", 0, "tiny-llama"),
    ("doctor", 0, r"pip install 'hfflow\[.*train.*\]'"),
    ("run", 2, r"pip install 'hfflow\[data,spaces,train\]'"),
    ("data flow-writer", 2, r"pip install 'hfflow\[data\]'"),
    ("plan hfflow/tiny-llama", 2, r"pip install 'hfflow\[train\]'"),
    ("serve hfflow/tiny-llama", 2, r"pip install 'hfflow\[train\]'"),
])
def test_a_command_says_what_it_lacks(base, line, code, says):
    "One sentence with the line to paste; no traceback, and no bug."
    got, out = base("-c", COMMAND, *line.split())
    assert got == code and re.search(says, out), out
    assert "Traceback" not in out and "a bug" not in out
    if code == 2: assert len(out.strip().splitlines()) == 1, out


@pytest.mark.parametrize("call", [
    "from hfflow.data import prepare; prepare([dict(prompt='a', completion='b')])",
    "from hfflow.qlora import load_base; load_base('hfflow/tiny-llama')",
    "from hfflow.qlora import load_tokenizer; load_tokenizer('hfflow/tiny-llama')",
    "from hfflow.plan import plan; plan('hfflow/tiny-llama')",
    "from hfflow.train import TrainConfig, fit; fit(None, None, [1], TrainConfig(), 'out')",
    "from hfflow.ecosystem import tiny; tiny('bert', 'there')",
    "from hfflow.ecosystem import draw_flow; draw_flow()",
    "from hfflow.metrics import tfidf_control; tfidf_control([dict(prompt='a', completion='b')])",
    "from hfflow import flow; flow.run()",
])
def test_a_function_says_what_it_lacks(base, call):
    code, out = base("-c", f"from hfflow.core import UserError\ntry:\n    {call}\nexcept UserError as e: print('said:', e)")
    assert code == 0 and re.search(r"said: .*pip install 'hfflow\[[a-z,]+\]'", out), out
