"""The pages with the libraries that Colab has: by Jupyter's own machinery, from an empty folder, in an environment of their own."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest

NBS = Path(__file__).parents[1]/"nbs"
# Colab of August 2026; the torch and the Python of this environment.
COLAB = ["transformers==5.15.0", "datasets==4.0.0", "huggingface_hub==1.27.0", "peft==0.20.0", "accelerate==1.14.0",
         "tokenizers==0.22.2", "dill==0.3.8", "multiprocess==0.70.16", "fsspec==2025.3.0", "pandas==2.2.3"]
SOME = ["00_start", "02_hub", "03_datasets"]


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    "A folder with these versions, which come before those of this environment."
    folder = tmp_path_factory.mktemp("colab")
    got = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *COLAB], capture_output=True, text=True)
    assert got.returncode == 0, got.stderr[-1500:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", pages.course() if os.environ.get("HFFLOW_ALL_PAGES") else SOME)
def test_a_page_runs_with_colabs_libraries(page, colab, tmp_path):
    notebook = shutil.copy(NBS/f"{page}.ipynb", tmp_path)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(colab), str(NBS.parent)]), "HFFLOW_HOME": str(tmp_path/"home")}
    code = "from hfflow import hub; hub.stop()"
    try:
        ran = subprocess.run([sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", notebook, "--output", "ran.ipynb"], cwd=tmp_path,
                             env=env, text=True, timeout=500, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally: subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert ran.returncode == 0, ran.stdout[-4000:]
