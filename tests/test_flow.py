"""The flow: run twice, changed, interrupted in every stage, killed, and every fault as one sentence."""
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import tinychat
from hfflow import data, flow, hub as hubs, publish, train
from hfflow.engine import pushing, register, spacefiles, stages, training, work
from hfflow.flow import Interrupted, StageResult, Store, explain, load, run
from hfflow.hub import UserError

STAGES = list(flow.STAGES)
HFFLOW = [sys.executable, "-c", "import sys; from hfflow.cli import main; sys.exit(main())"]


def rows(n, start=0): return [{"Request": f"tune model {i} with rank {i % 7}", "Config": f"base: m{i}\nrank: {i % 7}"} for i in range(start, start + n)]


def write(path, rows):
    with open(path, "w", newline="") as f:
        w = csv.DictWriter(f, ["Request", "Config"])
        w.writeheader()
        w.writerows(rows)


@pytest.fixture(scope="module")
def hub(): return hubs.connect()


@pytest.fixture(scope="module")
def base(hub):
    "A chat model of 30 thousand parameters on the Hub: the flow's own work is tested here, not what it can learn."
    return tinychat.publish("micro-llama", [r["Request"] + r["Config"] for r in rows(40)])


@pytest.fixture()
def made(base, tmp_path, request):
    "A short flow over raw files of its own, as the dict that a flow.yaml is."
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "train.csv", rows(60) + rows(1))       # one row stands twice
    write(raw / "test.csv", rows(8, 100))
    name = re.sub(r"\W+", "-", request.node.name).strip("-")[:40]
    return dict(preset="cpu", base=base, data=str(raw), rank=4, name=name, train=dict(max_steps=6, batch=4, max_len=128, threads=1, save_every=3),
                evaluate=dict(limit=4, max_new_tokens=8), space=dict(try_it=False), publish={"if": "always"})   # six steps teach nothing


def statuses(report): return [s.status for s in report.stages]


def commits(hub, report): return [len(hub.api.list_repo_commits(a.repo_id, repo_type=a.kind)) for a in report.artifacts]


def nothing_published(hub, cfg):
    owner_name = f"you/{cfg['name']}"
    return not [m for m in hub.api.list_models(author="you") if m.id.startswith(owner_name)]


def test_metrics_by_name_go_from_flow_yaml_to_the_model_page(made, hub, tmp_path):
    made["evaluate"]["metrics"] = ["chrf", "f1"]
    report = run(made, hub, tmp_path, progress=False)
    for row in report.as_dict()["metrics"]["after"]: assert set(row["metrics"]) == {"chrf", "f1"}
    rows, model = report.artifacts[:2]
    file = hub.api.hf_hub_download(model.repo_id, f".eval_results/{rows.repo_id.split('/')[1]}.yaml")
    text = Path(file).read_text(encoding="utf-8")
    assert all(f"id: {x}\n" in text for x in (rows.repo_id, "test_exact_match", "test_chrf", "test_f1")) and rows.revision in text


# ---- twice, and changed

def test_a_second_run_keeps_everything(made, hub, tmp_path):
    made["space"] = dict(question="tune model 3 with rank 3")
    first = run(made, hub, tmp_path, tmp_path / "a.json", progress=False)
    before = commits(hub, first)
    again = run(made, hub, tmp_path, tmp_path / "b.json", progress=False)
    assert statuses(first) == ["done"] * 7 and statuses(again) == ["kept"] * 7
    assert again.artifacts == first.artifacts and commits(hub, again) == before
    a, b = (json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab")
    for key in ("artifacts", "metrics", "memory_bytes", "training_seconds", "space"): assert a[key] == b[key]
    assert [x["kind"] for x in a["artifacts"]] == ["dataset", "model", "space"]
    for x in a["artifacts"]:
        assert re.fullmatch("[0-9a-f]{40}", x["revision"]) and x["url"].startswith(hub.endpoint)
        assert hub.api.repo_info(x["repo_id"], repo_type=x["kind"], revision=x["revision"]).sha == x["revision"]
    assert [r["system"] for r in a["metrics"]["controls"]] == ["most frequent", "nearest training row"]
    for row in a["metrics"]["before"] + a["metrics"]["after"] + a["metrics"]["controls"]:
        assert row["n"] == 4 and 0 <= row["lo"] <= row["exact"] <= row["hi"] <= 1
    for quantity in ("memory_bytes", "training_seconds"): assert a[quantity]["predicted"] > 0 and a[quantity]["measured"] > 0
    assert a["space"]["question"] == "tune model 3 with rank 3" and a["space"]["answer"]
    text = str(first)
    assert all(x.url in text for x in first.artifacts) and "predicted" in text and "hfflow serve" in text
    assert first.result("prepare")["dropped"] == 1


def test_only_what_changed_is_done_again(made, hub, tmp_path):
    go = lambda **kw: run({**made, **kw}, hub, tmp_path, progress=False)
    first = go()
    assert statuses(go(evaluate=dict(limit=3, max_new_tokens=8))) == ["kept"] * 4 + ["done"] * 3
    assert statuses(go(rank=2)) == ["kept"] * 2 + ["done"] * 5
    go()
    trained = tmp_path / "runs" / made["name"] / first.result("train")["folder"]
    next(trained.rglob("adapter_model.safetensors")).write_bytes(b"damaged")
    assert statuses(go())[:4] == ["kept", "kept", "kept", "done"]
    hub.api.delete_repo(first.artifacts[0].repo_id, repo_type="dataset")
    assert statuses(go())[:2] == ["kept", "done"]
    write(Path(made["data"]) / "test.csv", rows(9, 100))
    assert statuses(go())[:4] == ["done", "done", "done", "done"]
    assert statuses(run(made, hub, tmp_path, progress=False, force=True, stages="plan")) == ["done"] * 3 + ["skipped"] * 4


def test_the_version_of_hfflow_counts(made, hub, tmp_path, monkeypatch):
    run(made, hub, tmp_path, progress=False, stages="register")
    monkeypatch.setattr("hfflow.__version__", "999.0")
    again = run(made, hub, tmp_path, progress=False, stages="register")
    assert statuses(again)[:2] == ["done", "done"]


def test_another_hub_is_another_place(made, hub):
    w = flow.Work(load(made), hub, ".", False)
    elsewhere = flow.Work(load(made), replace(hub, embedded=False, endpoint="https://hub.example"), ".", False)
    w.done = elsewhere.done = {"prepare": stages.Cleaned({}, "x", 0, {})}
    inputs = flow.STAGES["register"].inputs
    assert inputs(w) != inputs(elsewhere)
    with pytest.raises(UserError, match="HF_TOKEN"): flow.Work(load(made), replace(hub, user=None), ".", False)


def test_conversations_are_asked_again_before_they_are_published(made, hub, tmp_path):
    "What a chat model answered to a whole conversation is checked by asking the whole conversation."
    talk = lambda i: {"messages": [{"role": "user", "content": f"tune model {i}"}, {"role": "assistant", "content": "which rank?"},
                                   {"role": "user", "content": f"rank {i % 7}"}, {"role": "assistant", "content": f"base: m{i}"}]}
    for name, numbers in (("train", range(40)), ("test", range(100, 108))):
        (Path(made["data"]) / f"{name}.csv").unlink()
        (Path(made["data"]) / f"{name}.jsonl").write_text("".join(json.dumps(talk(i)) + "\n" for i in numbers))
    report = run(made, hub, tmp_path, progress=False, stages="publish")
    kept = json.loads(Path(hub.api.hf_hub_download(report.artifacts[1].repo_id, "evaluation.json")).read_text())["samples"]
    asked = [s["asked"]["messages"] for s in kept if s["system"] == "fine-tuned"]
    assert asked and all([m["role"] for m in a] == ["user", "assistant", "user"] for a in asked)
    assert not [s for s in kept if s["system"] == "most frequent" and "asked" in s]
    checks = publish.verify(report.artifacts[1])
    assert checks.ok and "answers" in {c.name for c in checks}, str(checks)


# ---- interrupted

def test_ctrl_c_in_every_stage(made, hub, tmp_path, monkeypatch):
    "The worst moment: a stage's work is done and not yet remembered."
    for i, name in enumerate(STAGES):
        stage = flow.STAGES[name]

        def pressed(w, work=stage.work):
            work(w)
            raise KeyboardInterrupt
        with monkeypatch.context() as m:
            m.setitem(flow.STAGES, name, replace(stage, work=pressed))
            with pytest.raises(Interrupted) as e: run(made, hub, tmp_path, tmp_path / "r.json", progress=False)
        assert f"'{name}'" in str(e.value) and "run the same command again" in str(e.value) and "\n" not in str(e.value)
        assert [s["status"] for s in json.loads((tmp_path / "r.json").read_text())["stages"]] == ["done" if j == i - 1 else "kept" if j < i else "skipped" for j in range(7)]
    final = run(made, hub, tmp_path, progress=False)
    assert statuses(final) == ["kept"] * 6 + ["done"]
    assert commits(hub, final)[0] == 2, "the first commit, and one for the data, though it was registered twice"


def start(made, tmp_path):
    "Start the flow as a process, and wait for its first checkpoint."
    (tmp_path / "flow.yaml").write_text(json.dumps(made))
    p = subprocess.Popen([*HFFLOW, "run", "--report", "report.json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/train-*/checkpoints/step-*/state.json")):
        assert p.poll() is None and time.monotonic() < end, p.communicate()
        time.sleep(0.02)
    return p


@pytest.mark.slow
def test_killed_and_interrupted_while_training(made, hub, tmp_path):
    made["train"] |= dict(max_steps=3000, save_every=20)      # long enough that no signal comes after the end
    p = start(made, tmp_path)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert nothing_published(hub, made)
    second = subprocess.Popen([*HFFLOW, "run"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in second.stdout:
        if "train" in line: break
    [log] = tmp_path.rglob("train-*/log.jsonl")
    before = log.stat().st_size
    while log.stat().st_size == before: time.sleep(.01)                # it goes on
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 130 and len(err.strip().splitlines()) == 1 and "run the same command again" in err, err
    assert nothing_published(hub, made)
    os.chdir(tmp_path.parent)
    final = run(made, hub, tmp_path, progress=False)
    trained = final.result("train")["run"]
    assert statuses(final)[:3] == ["kept"] * 3 and trained["steps"] == 3000 and trained["resumed_from"] > 0
    assert [a.kind for a in final.artifacts] == ["dataset", "model", "space"]


def test_two_runs_in_one_folder(made, hub, tmp_path):
    with work.alone(tmp_path / "runs" / made["name"]):
        with pytest.raises(UserError, match="another run"): run(made, hub, tmp_path, progress=False, stages="prepare")
    assert statuses(run(made, hub, tmp_path, progress=False, stages="prepare"))[0] == "done"


# ---- faults

def fault(made, hub, tmp_path, match, **changes):
    "Run a flow that cannot be run; its one sentence."
    with pytest.raises(UserError, match=match) as e: run({**made, **changes}, hub, tmp_path, tmp_path / "r.json", progress=False)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    failed = [s for s in json.loads((tmp_path / "r.json").read_text())["stages"] if s["status"] == "failed"]
    assert len(failed) == 1 and failed[0]["error"] == str(e.value)
    return failed[0]["stage"]


def test_data_that_cannot_be_used(made, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    assert fault(made, hub, tmp_path, "no such file", data="nowhere.csv") == "prepare"
    assert fault(made, hub, tmp_path, "no file", data=str(tmp_path / "empty")) == "prepare"
    (tmp_path / "odd.csv").write_text("colour,shape\nred,round\n" * 3)
    assert fault(made, hub, tmp_path, "colour", data=str(tmp_path / "odd.csv")) == "prepare"
    (tmp_path / "void.csv").write_text("prompt,completion\nsay,\nsing,\n")
    assert fault(made, hub, tmp_path, "left|empty", data=str(tmp_path / "void.csv")) == "prepare"


def test_no_label_token_is_left(made, hub, tmp_path):
    stage = fault(made, hub, tmp_path, "token", train={**made["train"], "max_len": 8})
    assert stage in ("plan", "train") and nothing_published(hub, made)


def test_unknown_base(made, hub, tmp_path):
    assert fault(made, hub, tmp_path, "did you mean 'you/micro-llama'", base="you/micro-lama") == "plan"
    assert fault(made, hub, tmp_path, "not on|no revision", base="you/micro-llama@nowhere") == "plan"


@pytest.mark.parametrize("module, name, stage", [(register, "register", "register"), (training, "fit", "train"), (pushing, "push", "publish"), (spacefiles, "push", "space")],
                         ids=lambda x: getattr(x, "__name__", x))
def test_the_disk_is_full(made, hub, tmp_path, monkeypatch, module, name, stage):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(module, name, full)
        assert fault(made, hub, tmp_path, "disk is full") == stage
    upto = STAGES.index(stage)
    after = run(made, hub, tmp_path, progress=False, stages=stage)
    assert statuses(after)[:upto + 1] == ["kept"] * upto + ["done"]


def test_results_that_cannot_be_written(made, hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is a folder"): run(made, hub, tmp_path, tmp_path, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as e: run(made, hub, tmp_path / "file", progress=False)
    assert "\n" not in str(e.value)


def test_the_hub_goes_away(made, hub, tmp_path, monkeypatch):
    import httpx

    def gone(*args, **kwargs): raise httpx.ConnectError("[Errno 111] Connection refused")
    monkeypatch.setattr(register, "register", gone)
    assert fault(made, hub, tmp_path, "does not answer") == "register"


def test_a_bug_stays_a_bug(made, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(register, "register", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError): run(made, hub, tmp_path, tmp_path / "r.json", progress=False)
    assert json.loads((tmp_path / "r.json").read_text())["stages"][1]["status"] == "failed"
    assert explain(ValueError("x")) is None


@pytest.fixture()
def smaller(made, hub, monkeypatch):
    "A machine on which a batch of 4 does not fit, and fewer rows do; the flow on it, and a base that nobody has downloaded."
    from hfflow.engine import case, devices, planning
    made["base"] = tinychat.publish(f"{made['name']}-base"[:60])
    monkeypatch.setattr(case, "probe", lambda *args: 1e9)
    monkeypatch.setattr(case.Case, "process", property(lambda case: 0))
    cfg, rows = load(made), stages.task_rows(data.prepare(made["data"], progress=False).splits["train"])
    need = [planning.plan(made["base"], rows, cfg.lora, replace(cfg.train, batch=b)).total_bytes for b in (1, 4)]
    monkeypatch.setattr(planning, "gpu_here", lambda: devices.Gpu("this machine (CPU)", sum(need) / 2 / 2**30, kind="cpu"))
    return made


def weights_here(base):
    from huggingface_hub import constants
    return list(Path(constants.HF_HUB_CACHE).glob(f"models--{base.replace('/', '--')}/snapshots/*/*.safetensors"))


def test_a_model_that_does_not_fit(smaller, hub, tmp_path, monkeypatch):
    from hfflow.engine import devices, planning
    assert fault(smaller, hub, tmp_path, r"with batch 4 of up to \d+ tokens and 4 bits needs .* and this machine .* has .*; this fits: batch=\d with accumulation=\d") == "plan"
    assert not weights_here(smaller["base"])
    monkeypatch.setattr(planning, "gpu_here", lambda: devices.Gpu("this machine (CPU)", 0.01, kind="cpu"))
    assert fault(smaller, hub, tmp_path, "take a smaller base", preset="auto") == "plan"


def test_auto_takes_the_nearest_setting_that_fits(smaller, hub, tmp_path, capsys):
    smaller |= dict(preset="auto")
    first = run(smaller, hub, tmp_path, stages="publish")
    out = capsys.readouterr().out
    s = first.result("plan")["setting"]
    assert s["batch"] < 4 and s["batch"] * s["accumulation"] == 4 and s["max_len"] == 128
    assert f"batch 4 does not fit: batch {s['batch']}, accumulation {s['accumulation']}" in out
    assert first.result("plan")["fits"] and first.result("train")["run"]["steps"] == 6 and weights_here(smaller["base"])
    card = Path(hub.api.hf_hub_download(first.artifacts[1].repo_id, "README.md")).read_text(encoding="utf-8")
    assert re.search(rf"batch\W+{s['batch']}\b", card) and "Predicted and measured" in card
    again = run(smaller, hub, tmp_path, progress=False, stages="publish")
    assert statuses(again)[:6] == ["kept"] * 6


def test_what_may_be_changed_unasked():
    asked = train.TrainConfig(batch=12, accumulation=2)
    assert stages._same_steps(asked, dict(batch=6, accumulation=4)) and stages._same_steps(asked, dict(batch=12, accumulation=2, checkpointing=True))
    assert not stages._same_steps(asked, dict(batch=8, accumulation=2)) and not stages._same_steps(asked, dict(batch=6, accumulation=4, max_len=128))
    assert [load(x).adjust for x in ({}, {"preset": "auto"}, {"preset": "cpu"}, {"preset": "cpu", "adjust": True}, {"adjust": False})] == [True, True, False, True, False]


# ---- results on disk

def test_a_torn_result_counts_as_absent(tmp_path):
    store = Store(tmp_path)
    store.put(StageResult("plan", "done", "d", 1.0, {"x": 1}))
    whole = store.path("plan").read_text()
    assert store.get("plan", "d").result == {"x": 1}
    for n in range(len(whole)):
        store.path("plan").write_text(whole[:n])
        assert store.get("plan", "d") is None
    assert not list(tmp_path.rglob("*.part"))


def test_what_another_version_kept_is_done_again(made, hub, tmp_path):
    go = lambda: run(made, hub, tmp_path, progress=False, stages="register")
    go()
    file = tmp_path / "runs" / made["name"] / "stages" / "register.json"
    for old in ({"artifact": None}, {"artifact": {"kind": "dataset"}}, {"repo": "x"}, None, 3):
        file.write_text(json.dumps({**json.loads(file.read_text()), "result": old}))
        assert statuses(go())[:2] == ["kept", "done"] and statuses(go())[:2] == ["kept", "kept"]


def test_a_stage_reads_what_it_wrote(made, hub, tmp_path):
    "The JSON of each result makes the same object again."
    from hfflow.engine.files import plain
    from hfflow.engine.store import again
    report = run(made, hub, tmp_path, progress=False)
    for name, stage in flow.STAGES.items():
        found = again(stage.kind, report.result(name))
        assert plain(found) == report.result(name), name
        with pytest.raises(AttributeError): found.extra = 1


def test_stages_that_do_not_exist(made, hub, tmp_path):
    with pytest.raises(UserError, match="did you mean 'train'"): run(made, hub, tmp_path, progress=False, stages="trian")


# ---- configs

SECTIONS = ("prepare", "lora", "train", "evaluate", "publish", "space")
KEYS = st.one_of(st.sampled_from(["preset", "base", "data", "rank", "epochs", "bits", "name", "namespace", "ranks", "lr", *SECTIONS]), st.text(max_size=6))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 70), st.floats(), st.text(max_size=8), st.sampled_from(["cpu", "t4", "4", "x/y", "sixteen"]),
                   st.lists(st.integers(), max_size=2), st.dictionaries(st.sampled_from(["rank", "bits", "lr", "batch", "epochs", "nope", "sdk", "limit"]), st.one_of(st.none(), st.integers(-1, 9), st.text(max_size=4)), max_size=2))


@settings(max_examples=300, deadline=None, database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_config_loads_or_is_refused_in_one_sentence(given_):
    try: cfg = load(given_, embedded=True)
    except UserError as e: assert "\n" not in str(e).strip() and 10 < len(str(e)) < 900
    else: assert cfg.lora.rank == cfg.rank and cfg.lora.bits == cfg.bits and cfg.train.epochs == cfg.epochs and load(cfg.as_dict()) == cfg


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(max_size=60))
def test_any_text_loads_or_is_refused_in_one_sentence(text):
    try: load(text + "\n", embedded=True)
    except UserError as e: assert len(str(e)) < 900


@pytest.mark.parametrize("text, says", [
    ("preset: cpuu\n", "preset: cpu"), ("rnak: 8\n", "'rank'"), ("rank: 2000\n", "rank: 1024"), ("rank: 8.5\n", "rank: 8"),
    ("bits: 6\n", "bits: 4"), ("epochs: -1\n", "epochs: 1"), ("train: {lr: 5}\n", "lr: 1"), ("train: {btach: 5}\n", "'batch'"),
    ("space: {sdk: streamlit}\n", "gradio"), ("evaluate: {controls: maybe}\n", "true or false"), ("name: a/b\n", "name:"),
    ("base: 'a b c'\n", "base"), ("train: {schedule: cosin}\n", "cosine"), ("max_steps: 5\n", "'train'")])
def test_the_nearest_right_one(text, says):
    with pytest.raises(UserError) as e: load(text, embedded=True)
    assert says in str(e.value)


def test_short_keys_are_those_of_the_sections():
    cfg = load("rank: 8\nlora: {rank: 8, dropout: 0.1}\nepochs: 2\nmodel: {base: you/x}\n", embedded=True)
    assert (cfg.rank, cfg.lora.rank, cfg.lora.dropout, cfg.epochs, cfg.train.epochs, cfg.base, cfg.model.base) == (8, 8, .1, 2, 2, "you/x", "you/x")
    assert replace(cfg, lora=replace(cfg.lora, rank=4)).rank == 4
    assert list(cfg.as_dict())[:6] == ["preset", "base", "data", "rank", "epochs", "bits"]


@pytest.mark.parametrize("make, says", [
    (lambda: train.TrainConfig(batch=True), "batch is true, but must be a whole number: for example batch: 16"),
    (lambda: train.TrainConfig(lr=float("nan")), "lr is NaN, but must be a number"),
    (lambda: train.TrainConfig(schedule="cosin"), "schedule is 'cosin', but only linear, cosine, constant, wsd are known: the nearest is schedule: cosine"),
    (lambda: data.DataConfig(test_size=2), "test_size is 2, but must be between 0 and 0.9: the nearest is test_size: 0.9"),
    (lambda: data.DataConfig(sise=1), "DataConfig has no setting 'sise'"), (lambda: flow.SpaceConfig(try_it=1), "try_it is 1, but must be true or false: for example try_it: true"),
    (lambda: flow.EvaluateConfig(limit=0), "limit is 0, but must be between 1 and"), (lambda: flow.FlowConfig(name="a/b"), "for example name: b")])
def test_a_config_made_in_python_is_checked_alike(make, says):
    with pytest.raises(UserError) as e: make()
    assert says in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "flow.yaml").write_text("rank: 8\n")
    assert load(tmp_path).rank == load(tmp_path / "flow.yaml").rank == 8
    with pytest.raises(UserError, match="did you mean .*flow.yaml"): load(tmp_path / "flwo.yaml")
    (tmp_path / "flow.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError): load(tmp_path / "flow.yaml")


def test_epochs_and_steps_of_yours_replace_the_minutes_of_the_base():
    assert "minutes" in load({"preset": "cpu"}).left_open
    for own in ({"epochs": 2}, {"train": {"max_steps": 9}}, {"minutes": 3}): assert not {"minutes", "epochs"} & set(load({"preset": "cpu", **own}).left_open)
    assert load({"preset": "cpu", "epochs": 2}).minutes is None
    own = load({"preset": "cpu", "train": {"max_steps": 9}})
    assert (own.minutes, own.train.max_steps) == (None, 9)
    assert load({"preset": "t4", "minutes": 30}).minutes == 30
    with pytest.raises(UserError, match="keep one of them"): load({"minutes": 1, "train": {"max_steps": 9}})
    with pytest.raises(UserError, match="0.01"): load({"minutes": 0})


def test_minutes_become_steps_once(made, hub, tmp_path):
    del made["train"]["max_steps"]
    made |= dict(minutes=0.02, epochs=3)
    first = run(made, hub, tmp_path, tmp_path / "a.json", stages="train", progress=False)
    steps = json.loads((tmp_path / "runs" / made["name"] / "stages" / "plan.json").read_text())["result"]["steps"]
    log = next((tmp_path / "runs").glob("*/train-*/log.jsonl")).read_text().splitlines()
    assert 1 <= steps <= 45 and max(json.loads(line)["step"] for line in log) == steps, (steps, first)
    again = run(made, hub, tmp_path, tmp_path / "b.json", stages="train", progress=False)
    assert again.status()["train"] == "kept" and "done" not in again.status().values()


@pytest.mark.parametrize("preset", flow.PRESETS)
def test_every_preset_loads(preset): assert load({"preset": preset}).preset == preset
