"""What the pages and modules call is there: in the libraries that are installed, and in the oldest that we allow."""
import re
import subprocess
import sys
from pathlib import Path

import drift
import pytest

ROOT = Path(__file__).parents[1]
# Each of these is wrong today, and was right once or is a slip of the pen: (code, what is said of it)
PLANTED = [
    ("from transformers import NotThere", "NotThere"),
    ("from datasets import load_metric", "load_metric"),
    ("from huggingface_hub import Repository", "Repository"),
    ("import torch\ntorch.no_such_function()", "no_such_function"),
    ("from transformers import TrainingArguments\nTrainingArguments('x', evaluation_strategy='epoch')", "evaluation_strategy"),
    ("from transformers import TrainingArguments\nTrainingArguments('x', eval_strategy='epochs')", "epochs"),
    ("from transformers import TrainingArguments\nTrainingArguments('x', warmup_ratio_=.1)", "warmup_ratio_"),
    ("from transformers import Trainer\nTrainer(None, None, tokenizer=None)", "tokenizer"),
    ("from transformers import AutoModel\nAutoModel.from_pretrained('x', torch_dtype='auto')", "torch_dtype"),
    ("from transformers import AutoModel\nAutoModel.from_pretrained('x', load_in_4bit=True)", "load_in_4bit"),
    ("from transformers import BitsAndBytesConfig\nBitsAndBytesConfig(bnb_4bit_quant_type='nf5')", "nf5"),
    ("from transformers import pipeline\npipeline('sentiment-analysys', model='x')", "sentiment-analysys"),
    ("from huggingface_hub import HfApi\nHfApi().create_repo('a', repo_typ='dataset')", "repo_typ"),
    ("from huggingface_hub import HfApi\nHfApi().create_repo('a', repo_type='datasets')", "datasets"),
    ("from huggingface_hub import HfApi\nHfApi().create_repo('a', repo_type='space', space_sdk='streamlit_')", "streamlit_"),
    ("from huggingface_hub import HfApi\nHfApi().no_such_method()", "no_such_method"),
    ("from huggingface_hub import create_inference_endpoint as create\nimport huggingface_hub\n"
     "huggingface_hub.create_inference_endpoint('a', type='protected')", "protected"),
    ("from peft import LoraConfig\nLoraConfig(r=8, bias='nothing')", "nothing"),
    ("from peft import LoraConfig\nLoraConfig(r=8, task_type='CAUSAL')", "CAUSAL"),
    ("from datasets import load_dataset\nload_dataset('x').map(lambda b: b, batchd=True)", "batchd"),
]
# Pages that show what only newer clients can do, and say so
NEWER = {"localhub/08c_buckets", "localhub/08f2_dataserver", "localhub/08ib_jobs", "localhub/08ic_schedules", "localhub/08j_endpoints"}
# What these need beside them to be imported
COMPANIONS = ["tokenizers==0.22.0", "dill==0.3.8", "multiprocess==0.70.16", "fsspec==2025.3.0"]


def test_what_is_wrong_is_found(tmp_path):
    for i, (code, _) in enumerate(PLANTED): (tmp_path / f"plant{i}.py").write_text(code + "\n")
    found = "\n".join(drift.drift([tmp_path / f"plant{i}.py" for i in range(len(PLANTED))]))
    missed = [code for i, (code, word) in enumerate(PLANTED) if not re.search(rf"plant{i}\.py.*{re.escape(word)}", found)]
    assert not missed, found


def test_what_is_refused_on_purpose_is_no_drift(tmp_path):
    (tmp_path / "a.py").write_text("from fastcore.test import expect_fail\nfrom huggingface_hub import HfApi\n"
                                   "from transformers import TrainingArguments\n"
                                   "with expect_fail(ValueError): HfApi().create_repo('a', repo_type='datasets')\n"
                                   "with expect_fail(TypeError): TrainingArguments('a', evaluation_strategy='no')\n")
    assert drift.drift([tmp_path / "a.py"]) == []


def test_nothing_has_drifted():
    assert "\n".join(drift.drift(drift.everything())) == ""


def lowest():
    "The lowest versions that settings.ini allows of the libraries that move."
    text = (ROOT / "settings.ini").read_text()
    return [f"{name}=={re.search(rf'^ +{name}>=([0-9.]+)', text, re.M)[1]}" for name in ("transformers", "datasets", "huggingface_hub", "peft", "accelerate")]


@pytest.mark.slow
def test_nothing_is_newer_than_the_oldest_that_we_allow(tmp_path):
    got = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "old"), *lowest(), *COMPANIONS],
                         capture_output=True, text=True)
    assert got.returncode == 0, got.stderr[-1500:]
    pages = [str(p) for p in drift.everything() if p.relative_to(ROOT / p.relative_to(ROOT).parts[0]).with_suffix("").as_posix() not in NEWER]
    ran = subprocess.run([sys.executable, ROOT / "tests/drift.py", "--overlay", str(tmp_path / "old"), *pages], capture_output=True, text=True)
    assert ran.stdout.strip() == "nothing", ran.stdout[-3000:] + ran.stderr[-1500:]
