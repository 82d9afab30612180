"""The flow for other tasks: classifiers, seq2seq models and models trained in full, from flow.yaml to a repo that plain transformers loads."""
import contextlib
import io
import json
import re
import tempfile
from pathlib import Path

import pytest
import tinychat
import zoo
from hfflow import endpoint, flow, hub as hubs, plan, publish, spaces
from hfflow.cli import main
from hfflow.data import label_names, prepare
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig
from hfflow.train import TrainConfig

LABELS = ["small", "large", "huge"]
SAYS = {"small": "tiny little short", "large": "big wide tall", "huge": "giant endless vast"}


def rows(n, start=0):
    "Sentences whose words say the label."
    out = []
    for i in range(start, start + n):
        label = LABELS[i % 3]
        word = SAYS[label].split()[i // 3 % 3]
        out.append({"text": f"model {i} is {word} and {SAYS[label].split()[(i // 9) % 3]}", "label": label})
    return out


def put(folder, name, lines):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in lines))


@pytest.fixture(scope="module")
def hub(): return hubs.connect()


def base(hub, kind):
    "A random model of that kind with a tokenizer, as a repo; its id."
    import torch
    from transformers import AutoModelForMaskedLM

    tok, repo = tinychat.tokenizer([" ".join(r.values()) for r in rows(60)]), f"you/micro-{kind}"
    with tempfile.TemporaryDirectory() as d:
        torch.manual_seed(0)
        net = AutoModelForMaskedLM.from_config(zoo.config(kind)) if kind == "bert" else zoo.model(kind)
        net.save_pretrained(d)
        tok.save_pretrained(d)
        hub.api.create_repo(repo, exist_ok=True)
        hub.api.upload_folder(repo_id=repo, folder_path=d)
    return repo


@pytest.fixture()
def raw(tmp_path):
    put(tmp_path / "raw", "train.jsonl", rows(90))
    put(tmp_path / "raw", "test.jsonl", rows(30, 200))
    return tmp_path / "raw"


def config(name, base, raw, model, **more):
    return {"preset": "cpu", "name": name, "data": str(raw), "rank": 8, "bits": 4, "model": {"base": base, **model},
            "train": dict(max_steps=40, batch=16, lr=1e-2, max_len=48, threads=1), "evaluate": dict(limit=30, max_new_tokens=8), **more}


def read(artifact, name):
    return Path(hubs.connect().api.hf_hub_download(artifact.repo_id, name, repo_type=artifact.kind, revision=artifact.revision)).read_text(encoding="utf-8")


def names(hub, artifact): return set(hub.api.list_repo_files(artifact.repo_id, revision=artifact.revision))


def run_card(artifact, prompt):
    "Run the code of the card as a reader would; what it prints."
    code = re.search(r"```python\n(.*?)\n```", read(artifact, "README.md"), re.S)[1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out): exec(compile(code.replace("your request", prompt), "card", "exec"), {})
    return out.getvalue().strip()


def card_of(artifact):
    from huggingface_hub import ModelCard

    card = ModelCard(read(artifact, "README.md"))
    card.validate()
    return card


def sample(artifact):
    "A request and what the published model answered when it was measured."
    report = json.loads(read(artifact, "evaluation.json"))
    return next((s["prompt"], s["answer"]) for s in report["samples"] if s["system"] == "fine-tuned")


# ---- a classifier

@pytest.mark.parametrize("merged", [False, True])
def test_a_classifier_from_yaml_to_a_pipeline(hub, raw, tmp_path, merged):
    model = {"task": "classify"} | ({"labels": LABELS} if merged else {})
    report = flow.run(config(f"sizes-{merged}".lower(), base(hub, "bert"), raw, model, publish=dict(merged=merged, private=merged)), hub, tmp_path, progress=False)
    labels = LABELS if merged else sorted(LABELS)
    data, made, space = report.artifacts
    assert report.result("prepare")["labels"] == labels
    row, = report.metrics["after"]
    control, words = report.metrics["controls"]
    assert row["n"] == 30 and row["exact"] > .9 > .5 > control["exact"] and control["system"] == "most frequent"
    assert words["system"] == "TF-IDF + logistic regression" and words["exact"] > .9 and report.metrics["verdict"]["ok"]
    assert row["exact"] == row["metrics"]["accuracy"]["value"] and set(row["metrics"]) == {"accuracy", "macro_f1"}
    assert row["confusion"]["labels"] == labels and sum(map(sum, row["confusion"]["counts"])) == 30
    card = card_of(made)
    assert card.data.pipeline_tag == "text-classification" and card.data.library_name == ("transformers" if merged else "peft")
    assert [r.metric_type for r in card.data.eval_results] == ["exact_match", "accuracy", "macro_f1"]
    right = row["confusion"]["counts"][0][0]
    assert "|  | " + " | ".join(labels) + " | precision" in card.text and f"| **{labels[0]}** | {right} |" in card.text
    assert "one of 3 labels" in card.text and "text-classification" in read(data, "README.md")
    prompt, answer = sample(made)
    assert f"'label': '{answer}'" in run_card(made, prompt)
    checks = publish.verify(made)
    assert checks.ok, str(checks)
    files = names(hub, made)
    assert ("model.safetensors" in files) == merged and "generation_config.json" not in files
    if merged:
        known = json.loads(read(made, "config.json"))
        assert known["id2label"] == {str(i): l for i, l in enumerate(LABELS)} and known["label2id"] == {l: i for i, l in enumerate(LABELS)}
    assert publish.purpose(made) == "classify"
    again = flow.run(config(f"sizes-{merged}".lower(), base(hub, "bert"), raw, model, publish=dict(merged=merged, private=merged)), hub, tmp_path, progress=False)
    assert set(again.status().values()) == {"kept"} and "hfflow serve" not in str(again)
    with pytest.raises(UserError, match="'classify'.*use gradio or static"): spaces.build(made, tmp_path / "space", sdk="docker")
    asked = report.result("space")
    assert all(hub.api.repo_info(a.repo_id, repo_type=a.kind).private is merged for a in (data, made, space))
    assert space.kind == "space" and asked["answer"] == next(iter(asked["sure"])) and asked["answer"] in str(report)
    with spaces.start(space) as app: sure = app.ask(prompt)
    assert set(sure) == set(labels) and next(iter(sure)) == answer and sum(sure.values()) == pytest.approx(1)
    with pytest.raises(UserError, match="'classify'.*chat"): endpoint.serve(made, port=0)


def test_class_numbers_take_their_names_in_the_order_of_the_data_set(hub):
    from datasets import ClassLabel, Dataset, Features, Value

    found = rows(12)
    ds = Dataset.from_list([r | {"label": LABELS.index(r["label"])} for r in found], features=Features({"text": Value("string"), "label": ClassLabel(names=LABELS)}))
    made = prepare(ds, progress=False)
    assert label_names(made) == LABELS != sorted(LABELS) and made.splits["train"]["completion"][0] in LABELS
    numbers = prepare([{"text": f"text {i}", "label": i % 12} for i in range(120)], progress=False)
    assert label_names(numbers) == [str(i) for i in range(12)]


# ---- a model of two halves

@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_seq2seq_model_from_yaml_to_generate(hub, raw, tmp_path, kind):
    for name in ("train", "test"):
        lines = [json.loads(l) for l in (raw / f"{name}.jsonl").read_text().splitlines()]
        put(raw, f"{name}.jsonl", [{"text": r["text"], "target": r["label"]} for r in lines])
    report = flow.run(config(f"say-{kind}", base(hub, kind), raw, {"task": "seq2seq"}, bits=32, evaluate=dict(limit=12, max_new_tokens=8, metrics=["f1"]), publish={"if": "always"}), hub, tmp_path, progress=False)
    row, = report.metrics["after"]
    assert row["n"] == 12 and "f1" in row["metrics"] and report.metrics["held_out_loss"]["after"] < report.metrics["held_out_loss"]["before"]
    made = report.artifacts[-1]
    card = card_of(made)
    assert card.data.pipeline_tag == "text-generation" and "text2text-generation" in card.data.tags and publish.purpose(made) == "seq2seq"
    prompt, answer = sample(made)
    assert run_card(made, prompt)[:len(answer)].strip() == answer.strip()
    checks = publish.verify(made)
    assert checks.ok, str(checks)


# ---- all weights trained

@pytest.mark.parametrize("task", ["causal", "classify", "seq2seq"])
def test_a_model_trained_in_full_is_published_whole(hub, raw, tmp_path, task):
    repo = tinychat.publish("whole-llama", [" ".join(r.values()) for r in rows(60)]) if task == "causal" else base(hub, "bert" if task == "classify" else "t5")
    cfg = config(f"whole-{task}", repo, raw, {"task": task}, bits=32, lora=dict(full=True), publish={"if": "always" if task == "seq2seq" else "better"})
    cfg["train"] |= dict(lr=3e-3)
    report = flow.run(cfg, hub, tmp_path, progress=False, stages="publish")
    made, files = report.artifacts[-1], names(hub, report.artifacts[-1])
    assert "model.safetensors" in files and not [f for f in files if "adapter" in f or f in ("qlora.json", "training_args.bin")]
    card = card_of(made)
    assert (card.data.library_name, card.data.base_model_relation) == ("transformers", "finetune") and "lora" not in card.data.tags
    assert "all of its weights were trained" in card.text and "peft" not in re.search(r"```python\n(.*?)\n```", card.text, re.S)[1]
    assert report.metrics["held_out_loss"]["after"] < report.metrics["held_out_loss"]["before"] and publish.purpose(made) == task
    prompt, answer = sample(made)
    said = run_card(made, prompt)
    assert f"'label': '{answer}'" in said if task == "classify" else said[:len(answer)].strip() == answer.strip()
    checks = publish.verify(made)
    assert checks.ok, str(checks)
    again = flow.run(cfg, hub, tmp_path, progress=False, stages="publish")
    assert set(again.status().values()) == {"kept", "skipped"}


# ---- refusals

@pytest.mark.parametrize("model, says", [
    ({"labels": ["a", "b"]}, "task: classify"), ({"task": "seq2seq", "labels": ["a", "b"]}, "task: classify"), ({"task": "clasify"}, "classify"),
    ({"task": "classify", "labels": "a, b"}, "must be a list"), ({"task": "classify", "labels": [True, False]}, "quotes"),
    ({"task": "classify", "labels": ["a"]}, "at least two"), ({"task": "classify", "labels": ["a", "b", "a"]}, "each once"), ({"labls": ["a"]}, "'labels'")])
def test_a_section_model_that_cannot_be_meant(model, says):
    with pytest.raises(UserError, match=says) as e: flow.load({"model": model}, embedded=True)
    assert "\n" not in str(e.value)


def test_the_base_stands_in_one_place():
    assert flow.load({"model": {"base": "you/x"}}).base == flow.load({"base": "you/x"}).model.base == "you/x"
    with pytest.raises(UserError, match="keep one"): flow.load({"base": "you/x", "model": {"base": "you/y"}})
    with pytest.raises(UserError, match="section 'model'"): flow.load({"task": "classify"})
    with pytest.raises(UserError, match="leave the section 'space' out"): flow.load({"model": {"task": "seq2seq"}, "space": {"sdk": "static"}})
    with pytest.raises(UserError, match="set space.sdk to gradio or static"): flow.load({"model": {"task": "classify"}, "space": {"sdk": "docker"}})
    cfg = flow.load({"model": {"task": "classify", "labels": [0, 1]}})
    assert cfg.model.labels == ("0", "1") and flow.load(cfg.as_dict()) == cfg


@pytest.mark.parametrize("change, labels, says", [
    ({"text": "model 7 is odd", "label": "odd"}, LABELS, r"train.jsonl:91 has the label 'odd'.*small, large, huge"),
    ({"text": "model 7 is odd", "label": "small"}, [*LABELS, "none"], "'none' has no training row"),
    ({"text": "model 7 is odd", "label": 7}, LABELS, "train.jsonl:91 has the label '7'")])
def test_labels_that_do_not_fit_the_data(hub, raw, tmp_path, change, labels, says):
    put(raw, "train.jsonl", [*rows(90), change])
    with pytest.raises(UserError, match=says): flow.run(config("odd", "you/none", raw, {"task": "classify", "labels": labels}), hub, tmp_path, progress=False)


def test_a_label_of_the_test_rows_alone_and_texts_alone(hub, raw, tmp_path):
    put(raw, "test.jsonl", [{"text": "model 1 is odd", "label": "odd"}])
    with pytest.raises(UserError, match="test.jsonl:1 has the label 'odd'"): flow.run(config("odd", "you/none", raw, {"task": "classify"}), hub, tmp_path, progress=False)
    for name in ("train", "test"): put(raw, f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(20)])
    for task in ("classify", "seq2seq"):
        with pytest.raises(UserError, match=r"jsonl:\d+ is a text alone"): flow.run(config("odd", "you/none", raw, {"task": task}), hub, tmp_path, progress=False)
    put(raw, "train.jsonl", [{"text": f"text {i}", "label": "same"} for i in range(20)])
    put(raw, "test.jsonl", [{"text": "another", "label": "same"}])
    with pytest.raises(UserError, match="needs two"): flow.run(config("odd", "you/none", raw, {"task": "classify"}), hub, tmp_path, progress=False)


def test_the_command_line_says_the_same(hub, raw, tmp_path, capsys):
    file = tmp_path / "flow.yaml"
    file.write_text(json.dumps(config("cli", base(hub, "bert"), raw, {"task": "classify"})))
    assert main(["plan", str(file)]) == 0 and "you/micro-bert: 0.1M parameters" in capsys.readouterr().out
    file.write_text(json.dumps(config("cli", "you/micro-bert", raw, {"task": "classify", "labels": ["small", "large"]})))
    assert main(["run", str(file), "--workdir", str(tmp_path), "-q"]) == 2
    err = capsys.readouterr().err
    assert "has the label 'huge', which is not one of small, large" in err and err.count("\n") == 1


# ---- the plan

def test_a_plan_without_data_and_of_sound():
    p = plan.plan(zoo.config("bert"), rows=100, task="classify", train=TrainConfig(batch=4, max_len=512))
    assert p.setting["task"] == "classify" and p.setting["longest"] == 64 and p.steps == 75
    p = plan.plan(zoo.config("bart"), rows=100, train=TrainConfig(batch=4, max_len=48))
    assert p.setting["task"] == "seq2seq" and p.setting["longest"] == 96
    p = plan.plan(zoo.config("whisper"), rows=10, train=TrainConfig(batch=2))
    assert p.setting["task"] == "seq2seq" and p.fits() and p.steps == 15
