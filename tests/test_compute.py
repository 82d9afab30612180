"""Where training runs: processes of this machine for real, jobs and tasks as what would be sent."""
import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
import re

import pytest
import yaml

from hfflow import compute
from hfflow.compute import FLAVORS, colab_url, hf_job, local, skypilot_task, torchrun
from hfflow.hub import UserError

WORLD = "import json, os; print(json.dumps({'world_size': int(os.environ.get('WORLD_SIZE', 1)), 'threads': os.environ['OMP_NUM_THREADS']}))"


def script(tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    return tmp_path / "script.py"


def test_local(tmp_path):
    done = local(script(tmp_path, "import sys\nprint('hello', *sys.argv[1:])\n" + WORLD), ("--x", 3), cwd=tmp_path, threads=3)
    assert done.code == 0 and "hello --x 3" in done.output and done.result == {"world_size": 1, "threads": "3"}


@pytest.mark.parametrize("text, says", [("raise ValueError('no such base')", "no such base"), ("import sys; sys.exit('gave up')", "gave up"), ("import sys; sys.exit(3)", "code 3")])
def test_a_script_that_fails(tmp_path, text, says):
    with pytest.raises(UserError, match=says): local(script(tmp_path, text), cwd=tmp_path)


def test_a_script_that_hangs(tmp_path):
    with pytest.raises(UserError, match="not ended after 1"): local(script(tmp_path, "import time; time.sleep(60)"), cwd=tmp_path, timeout=1)


def test_torchrun_starts_as_many_as_it_says(tmp_path):
    assert torchrun(script(tmp_path, "import os\nif os.environ['RANK'] == '0':\n    " + WORLD), 2, cwd=tmp_path).result["world_size"] == 2


def test_one_training_that_calls_itself_two_is_refused(tmp_path):
    with pytest.raises(UserError, match="2 processes were asked for, but the training reports 1"):
        torchrun(script(tmp_path, "import os; os.write(1, b'{\"world_size\": 1}\\n')"), 2, cwd=tmp_path)
    with pytest.raises(UserError, match="reports None"): torchrun(script(tmp_path, "print('nothing')"), 2, cwd=tmp_path)
    with pytest.raises(UserError, match="1 or more"): torchrun(script(tmp_path, ""), 0, cwd=tmp_path)


def test_the_script_checks_its_own_world():
    tree = ast.parse(compute.SCRIPT)
    assert "WORLD_SIZE" in compute.SCRIPT and any(isinstance(n, ast.Raise) for n in ast.walk(tree))


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("seconds", [None, 1, 1800, 36000])
def test_a_job_outlives_its_prediction(flavor, seconds):
    job = hf_job({"preset": "t4", "data": "it's \"quoted\""}, flavor, seconds)
    minutes = int(job.call["timeout"].removesuffix("m"))
    assert minutes >= 60 and minutes * 60 >= 2 * (seconds or 0) and job.cost == round(FLAVORS[flavor] * minutes / 60, 2)
    header = "".join(line.removeprefix("#").removeprefix(" ") for line in re.search(r"# /// script\n(.*?)# ///\n", job.script, re.S)[1].splitlines(True))
    assert tomllib.loads(header)["dependencies"] == ["hfflow[all]"]
    ast.parse(job.script)
    ast.parse(job.python())
    assert "secrets" not in job.script and "HF_TOKEN" not in job.script


def test_the_official_client_accepts_the_call():
    from huggingface_hub import HfApi
    job = hf_job({})
    inspect.signature(HfApi.run_uv_job).bind(None, job.path, **job.call)
    names = [k.arg for n in ast.walk(ast.parse(job.python())) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "run_uv_job" for k in n.keywords]
    inspect.signature(HfApi.run_uv_job).bind(None, job.path, **dict.fromkeys(names))


def test_the_scripts_config_arrives_whole(tmp_path):
    config = {"name": "o'brien \"x\"", "train": {"lr": 1e-4}, "note": "zeile\n2 \\ ü"}
    text = hf_job(config).script.split("print(")[0].replace("from hfflow import flow", "")
    p = subprocess.run([sys.executable, str(script(tmp_path, text + "print(json.dumps(config))"))], capture_output=True, text=True, check=True)
    assert json.loads(p.stdout) == config


@pytest.mark.parametrize("infra", [None, "aws", "k8s", "kubernetes"])
@pytest.mark.parametrize("gpu, name", [("t4", "T4"), ("a100", "A100-80GB"), ("H100", "H100")])
def test_a_task_is_valid(infra, gpu, name):
    task = yaml.safe_load(skypilot_task(gpu=gpu, count=2, infra=infra))
    assert task["resources"]["accelerators"] == f"{name}:2" and task["secrets"] == {"HF_TOKEN": None}
    assert task["resources"].get("infra") == {"kubernetes": "k8s"}.get(infra, infra)
    for part in ("setup", "run"): assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0


def test_spot_needs_a_bucket():
    with pytest.raises(UserError, match="bucket"): skypilot_task(spot=True)
    task = yaml.safe_load(skypilot_task(spot=True, bucket="s3://b"))
    assert task["file_mounts"]["/runs"] == {"source": "s3://b", "mode": "MOUNT"} and "--workdir /runs" in task["run"]


def test_colab(): assert colab_url("nbs/a b.ipynb").endswith("/hfflow/hfflow/blob/main/nbs/a%20b.ipynb")
