"""What every test stands on: a Hub and caches of the tests' own, one thread per worker, nothing of the user's touched."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Set while this file is imported: before any test imports torch or a client library, each of which reads them once.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
HOME = Path(tempfile.mkdtemp(prefix=f"hfflow-tests-{WORKER}-"))
os.environ["HFFLOW_HOME"] = str(HOME)
for name in ("HFFLOW_HUB", "HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_OIDC_RESOURCE"):
    os.environ.pop(name, None)
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg",
                  PYTHONUTF8="1", COLUMNS="120", GRADIO_ANALYTICS_ENABLED="False")
# Equalities are tested in fp32 on every machine; the chapters compute as the machine does, and some tests ask for bf16.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"

# A worker and the processes it starts share one core: threads that wait for each other on busy cores take ten times as long.
if WORKER != "main" and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


def pytest_configure(config):
    """Connect before any test module is imported: the client libraries read the Hub's address once, when they are."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"): return   # xdist's controller runs no test
    from hfflow import hub
    hub.connect()


def pytest_unconfigure(config):
    """Stop the embedded Hub that the tests started, and remove its folder."""
    code = "from hfflow import hub; hub.stop()"
    if (HOME / "hub").exists():
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def same_hub():
    """A test that connects elsewhere leaves the next one, and the processes it starts, with the Hub they had."""
    ours = lambda: {k: v for k, v in os.environ.items() if k.startswith(("HF_", "HFFLOW_"))}
    before = ours()
    yield
    for name in ours().keys() - before.keys(): del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def repo_copy(tmp_path_factory):
    """A copy of the files that git tracks: building and exporting there changes nothing here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    folder = tmp_path_factory.mktemp("repo")
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).is_file(): continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder
