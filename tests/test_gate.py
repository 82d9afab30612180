"""A run that has not learned says so with its likely cause, ends with 1, and replaces nothing; what has learned goes out whole, and the one line of every tutorial loads it."""
import json
import math
import random
from pathlib import Path

import pytest
import test_flow_tasks as tasks
from hfflow import flow, hub as hubs, publish
from hfflow.engine import gate, pushing, recipe
from hfflow.cli import main
from hfflow.evaluate import Report
from hfflow.engine.gate import NotLearned, Verdict, judge, standing
from hfflow.hub import Artifact, UserError


# ---- the verdict

def report(n=1000, text=False, **right):
    "A report in which each system has its first `right` rows right; in free text these share half of the words, the others none."
    names = {"tuned": "fine-tuned", "base": "base", "trivial": "most frequent", "words": gate.SIMPLE[0], "nearest": gate.SIMPLE[1]}
    found = {names[k]: v for k, v in right.items()}
    hits = {s: {"test": "0" * n if text else "1" * k + "0" * (n - k)} for s, k in found.items()}
    f1 = {s: {"test": tuple([.5] * k + [0.] * (n - k))} for s, k in found.items()}
    row = lambda s, k: dict(system=s, split="test", n=n, right=0 if text else k, exact=k / n, lo=0., hi=1., fields={})
    return Report([row(s, k) for s, k in found.items()], hits=hits, f1=f1)


def curve(start, end, n=200, noise=.05, seed=0):
    rng = random.Random(seed)
    return [start + (end - start) * min(1, i / (n * .6)) + rng.gauss(0, noise) for i in range(n)]


GUESS = math.log(2)
DOWN, FLAT = curve(.7, .4), curve(.694, .694)
BETTER, SAME = dict(before=.70, after=.45), dict(before=.70, after=.699)


@pytest.mark.parametrize("right, text, stands", [
    (dict(tuned=860, trivial=510), False, "better"), (dict(tuned=520, trivial=510), False, "better"), (dict(tuned=515, trivial=510), False, "equal"),
    (dict(tuned=300, trivial=510), False, "worse"), (dict(n=5, tuned=5, trivial=0), False, "cannot tell"), (dict(n=6, tuned=6, trivial=0), False, "better"),
    (dict(n=100, tuned=60, trivial=10), True, "better"), (dict(n=100, tuned=10, trivial=60), True, "worse"), (dict(n=100, tuned=10, trivial=10), True, "equal")])
def test_how_a_system_stands(right, text, stands):
    assert standing(report(text=text, **right), "fine-tuned", "most frequent", text) == stands


@pytest.mark.parametrize("losses, held, right, ok", [
    (DOWN, BETTER, dict(tuned=860, base=500, trivial=510, words=820), True),
    (FLAT, SAME, dict(tuned=510, base=500, trivial=510, words=820), False),             # a rate that ruins the base
    (FLAT[:2], SAME, dict(tuned=520, base=500, trivial=519), False),                     # two steps
    (curve(.7, .1), dict(before=.7, after=1.9), dict(tuned=500, base=505, trivial=510), False),      # shuffled labels, learned by heart
    (DOWN, dict(before=.7, after=.9), dict(tuned=860, base=500, trivial=510), True),     # too sure of itself, and right
    (DOWN, dict(before=.7, after=.9), {}, False),                                        # nothing but the loss, which rose
    (DOWN, BETTER, dict(tuned=700, base=500, trivial=510, words=820), False),            # scikit-learn does better
    (DOWN, BETTER, dict(tuned=810, base=500, trivial=510, words=812), True),             # as good as
    (DOWN, BETTER, dict(n=4, tuned=2, base=2, trivial=2), True),                         # four rows say nothing
    (DOWN, None, {}, True), (FLAT, None, {}, False)])
def test_what_is_learned(losses, held, right, ok):
    verdict = judge(losses, GUESS, held, report(**right) if right else None, lr=4e-4, usual=(4e-4, "a test"))
    assert bool(verdict) == ok and bool(verdict.against) != ok and bool(verdict.advice) != ok
    assert "\n" not in str(verdict) and Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict


def test_the_likely_cause_is_named():
    lost = report(tuned=510, base=500, trivial=510)
    cause = lambda losses=FLAT, **kw: judge(losses, GUESS, SAME, lost, **kw).advice
    assert "10 times the usual 0.0004 (a test)" in cause(lr=4e-3, usual=(4e-4, "a test")) and "set train: {lr: 0.0004}" in cause(lr=4e-3, usual=(4e-4, "a test"))
    assert "only 2 optimizer steps" in cause(FLAT[:2], lr=4e-4, usual=(4e-4, ""))
    assert "learned by heart" in cause(curve(.7, .1), lr=4e-4, usual=(4e-4, ""))
    assert "do not follow from the texts" in cause(lr=4e-4, usual=(4e-4, ""))
    words = judge(DOWN, GUESS, BETTER, report(tuned=700, base=500, trivial=510, words=820), lr=4e-4, usual=(4e-4, ""))
    assert str(words).startswith("the model is worse than a simple method: 700 of 1,000") and "'TF-IDF + logistic regression' has 820" in str(words) and "higher rank" in words.advice


# ---- the flow

@pytest.fixture(scope="module")
def hub(): return hubs.connect()


@pytest.fixture()
def raw(tmp_path):
    tasks.put(tmp_path / "raw", "train.jsonl", tasks.rows(90))
    tasks.put(tmp_path / "raw", "test.jsonl", tasks.rows(30, 200))
    return tmp_path / "raw"


def config(hub, name, raw, **more):
    return tasks.config(name, tasks.base(hub, "bert"), raw, {"task": "classify"}, space=dict(try_it=False)) | more


def shuffled(raw):
    "The labels of both files in another order."
    for name in ("train", "test"):
        rows = [json.loads(l) for l in (raw / f"{name}.jsonl").read_text().splitlines()]
        labels = [r["label"] for r in rows]
        random.Random(3).shuffle(labels)
        tasks.put(raw, f"{name}.jsonl", [r | {"label": l} for r, l in zip(rows, labels)])


@pytest.mark.parametrize("how, cause", [("steps", "only 2 optimizer steps"), ("rate", "times the usual"), ("labels", "Likely cause")])
def test_what_has_not_learned_does_not_go_out(hub, raw, tmp_path, capsys, how, cause):
    cfg = config(hub, f"unlearned-{how}", raw)
    if how == "steps": cfg["train"] |= dict(max_steps=2, lr=4e-4)
    if how == "rate": cfg["train"] |= dict(lr=.5, max_steps=60)
    if how == "labels":
        shuffled(raw)
        cfg["train"] |= dict(lr=4e-4, max_steps=60)
    (tmp_path / "flow.yaml").write_text(json.dumps(cfg))
    assert main(["run", str(tmp_path / "flow.yaml"), "--workdir", str(tmp_path), "--report", str(tmp_path / "r.json")]) == 1
    out, err = capsys.readouterr()
    [sentence] = [l for l in err.splitlines() if l.startswith("hfflow:")]
    assert "nothing is published" in sentence and cause in sentence and "exact match" in out and "most frequent" in out
    said = json.loads((tmp_path / "r.json").read_text())
    assert [s["status"] for s in said["stages"]] == ["done"] * 5 + ["failed", "skipped"] and not said["metrics"]["verdict"]["ok"]
    assert not [m for m in hub.api.list_models(author="you") if f"unlearned-{how}" in m.id]
    assert list((tmp_path / "runs" / f"unlearned-{how}").glob("train-*/adapter/adapter_model.safetensors")), "the candidate stays on disk"


def test_a_published_model_is_not_replaced_by_a_worse_one(hub, raw, tmp_path):
    cfg = config(hub, "kept-model", raw)
    good = flow.run(cfg, hub, tmp_path, progress=False)
    model, space = good.artifacts[1:]
    cfg["train"] |= dict(max_steps=2, lr=1e-3)
    with pytest.raises(NotLearned) as e: flow.run(cfg, hub, tmp_path, progress=False)
    assert e.value.report.status()["publish"] == "failed"
    assert Artifact.at("model", model.repo_id) == model and Artifact.at("space", space.repo_id) == space
    cfg["publish"] = {"candidate": "worse"}
    with pytest.raises(NotLearned, match="on the branch worse"): flow.run(cfg, hub, tmp_path, progress=False)
    there = Artifact.at("model", model.repo_id, "worse")
    assert there.revision != model.revision and Artifact.at("model", model.repo_id) == model
    assert "no better than without training" in tasks.read(there, "README.md")
    cfg["publish"] = {"if": "always"}
    forced = flow.run(cfg, hub, tmp_path, progress=False)
    assert forced.artifacts[1].revision != model.revision and "> **Note:** the model is no better" in tasks.read(forced.artifacts[1], "README.md")


def test_the_log_says_early_that_nothing_has_moved(hub, raw, tmp_path):
    cfg = config(hub, "early", raw, publish={"if": "always"})
    cfg["train"] |= dict(lr=1e-6, max_steps=100)
    flow.run(cfg, hub, tmp_path, progress=False, stages="train")
    log = [json.loads(l) for l in next(tmp_path.rglob("log.jsonl")).read_text().splitlines()]
    [event] = [e for e in log if "guessing" in e.get("event", "")]
    assert event["step"] == 10 and "after 10 of 100 steps" in event["event"] and "1e-06" in event["event"]


@pytest.mark.parametrize("text, says", [("publish: {if: maybe}", "better, always"), ("publish: {iff: better}", "'if'"), ("publish: {candidate: main}", "a branch beside main"),
                                        ("publish: {candidate: 'a b'}", "a branch beside main"), ("publish: {merged: perhaps}", "true or false")])
def test_the_section_publish_is_checked(text, says):
    with pytest.raises(UserError, match=says): flow.load(text + "\n")
    cfg = flow.load("publish: {if: always, candidate: tries/one}\n")
    assert (cfg.publish.if_, cfg.publish.candidate) == ("always", "tries/one") and flow.load(cfg.as_dict()) == cfg and cfg.as_dict()["publish"]["if"] == "always"


# ---- the one line

def test_the_one_line_of_every_tutorial(hub, raw, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    report = flow.run(config(hub, "one-line", raw), hub, tmp_path, progress=False, stages="publish")
    made = report.artifacts[-1]
    classify = pipeline("sentiment-analysis", model=made.repo_id)
    test = [json.loads(l) for l in (raw / "test.jsonl").read_text().splitlines()]
    right = sum(classify(r["text"])[0]["label"] == r["label"] for r in test)
    assert right == report.metrics["after"][0]["right"] > 25
    files = tasks.names(hub, made)
    assert {"model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= files
    assert not {"chat_template.jinja", "adapter_config.json", "qlora.json"} & files
    model = AutoModelForSequenceClassification.from_pretrained(made.repo_id)
    assert list(model.config.id2label.values()) == sorted(tasks.LABELS) and AutoTokenizer.from_pretrained(made.repo_id).chat_template is None
    from peft import PeftModel
    from hfflow.qlora import load_base
    note = json.loads(tasks.read(made, "adapter/qlora.json"))
    net = PeftModel.from_pretrained(load_base(note["name"], note["bits"], task="classify", labels=note["labels"]), made.repo_id, subfolder="adapter")
    assert sum(p.numel() for n, p in net.named_parameters() if "lora" in n) > 0


def test_a_large_model_keeps_to_its_adapter_and_a_classifier_does_not(hub, monkeypatch):
    import torch
    tiny = Artifact.at("model", "hfflow/tiny-llama")
    sizes = {"causal": [(1e8, torch.float32), (2.6e8, torch.bfloat16), (6e8, None)], "classify": [(1e8, torch.float32), (6e8, torch.bfloat16), (8e9, torch.bfloat16)]}
    for task, known in sizes.items():
        for n, want in known:
            monkeypatch.setattr(pushing, "kind_and_size", lambda *a, n=n: (task, n))
            assert publish.whole_dtype(tiny, task, ["a", "b"]) == want
    assert publish.whole_dtype(tiny, "causal", always=True) == torch.bfloat16
