"""The command hfflow: help, errors, exit codes, and each command doing its work."""
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

import tinychat
from hfflow import hub as hubs
from hfflow.cli import app, main
from hfflow.engine import doctor
from hfflow.engine.process import local_token

HFFLOW = [sys.executable, "-c", "import sys; from hfflow.cli import main; sys.exit(main())"]
COMMANDS = {"run", "plan", "data", "train", "evaluate", "publish", "space", "serve", "hub", "doctor", "lineage", "init"}


@pytest.fixture()
def call(capfd, tmp_path, monkeypatch):
    "Run the command in an empty folder; its exit code, stdout and stderr."
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capfd.readouterr()
        code = main([str(a) for a in args])
        return (code, *capfd.readouterr())
    return run


def process(*args, cwd=".", **env):
    "Run the command in a process of its own; its exit code, stdout and stderr."
    p = subprocess.run(HFFLOW + list(args), cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    return p.returncode, p.stdout, p.stderr


def refused(result, *says, code=2):
    "Assert that a command ended with one sentence on stderr."
    got, out, err = result
    lines = err.strip().splitlines()
    assert got == code and len(lines) == 1 and lines[0].startswith("hfflow: ") and "Traceback" not in out + err, (got, out, err)
    for text in says: assert text in err, err


@pytest.fixture(scope="module")
def base(): return tinychat.publish("cli-llama")


# ---- help

def commands(command, path=("hfflow",)):
    if hasattr(command, "commands"):
        for name, sub in command.commands.items(): yield from commands(sub, (*path, name))
    else: yield path, command


ALL = list(commands(get_command(app)))


def test_the_commands_are_there(): assert COMMANDS <= set(get_command(app).commands)


@pytest.mark.parametrize("path, command", ALL, ids=[" ".join(p) for p, _ in ALL])
def test_help_shows_an_example(call, path, command):
    code, out, err = call(*path[1:], "--help")
    assert code == 0 and not err
    assert re.search(rf"^ +{' '.join(path)}\b", out.split("Usage:")[1].split("\n", 1)[1], re.M), out
    assert not re.search(r"[ \t]{20,}\Z", out) and "\b" not in out
    for parameter in command.params: assert parameter.name in ("as_json",) or getattr(parameter, "help", None) or parameter.name in ("port", "host"), parameter.name


def test_help_loads_nothing_heavy_and_is_quick():
    code = ("import sys, time; t = time.perf_counter(); import hfflow.cli as c; c.main(['--help']);"
            "print(time.perf_counter() - t); print(sorted({'torch', 'transformers', 'datasets', 'peft', 'huggingface_hub', 'gradio', 'matplotlib'} & set(sys.modules)))")
    *_, seconds, loaded = min((subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines() for _ in range(3)), key=lambda x: float(x[-2]))
    assert loaded == "[]"
    assert float(seconds) < 2, "half a second on an idle machine; see benchmarks/startup.py"


def test_no_arguments_show_the_help(call):
    code, out, err = call()
    assert "hfflow run" in out + err and "Traceback" not in err


# ---- mistakes

@pytest.mark.parametrize("args, says", [
    (["rnu"], "did you mean 'run'"), (["lineag", "x"], "'lineage'"), (["hub", "strat"], "'start'"), (["run", "--reprot", "x"], "--report"),
    (["plan", "x", "--max-lenn", "3"], "--max-len"), (["lineage"], "ID"), (["data", "x", "--prompt"], "--prompt"), (["plan", "x", "--batch", "many"], "--batch"),
    (["run", "--set", "rank"], "key=value"), (["run", "--set", "rank=sixteen"], "whole number"), (["run", "--set", "train.lrr=1"], "'lr'"), (["run", "--set", "a.b.c=1"], "one dot"),
    (["run", "nowhere.yaml"], "no config file"), 
    (["hub", "check", "--data", "nowhere"], "no data folder"), (["hub", "gc", "--data", "nowhere"], "no data folder"), (["hub", "gc", "--older", "-1d"], "no time span"),
    (["hub", "import"], "ID"), (["hub", "import", "../x"], "no name of a repo"), (["hub", "import", "a/b", "--type", "modle"], "model, dataset, space"),
    (["hub", "import", "a/b", "--from", "http://127.0.0.1:9"], "does not answer"), (["hub", "import", "a/b", "--from", "huggingface.co"], "https://"),
    (["hub", "export", "a/b", "--to", "http://127.0.0.1:9"], "needs a token"), (["hub", "export", "you/b", "--to", "http://127.0.0.1:9", "--token", "x"], "does not answer"),
    (["hub", "export", "a b"], "no name of a repo"), (["hub", "open", "you/no-such-repo-here"], "no-such-repo-here"),
    (["data", "nowhere.csv"], "nowhere.csv"), (["serve", "x", "--port", "99999"], "65535"), (["init", "/dev/null/x"], "/dev/null")])
def test_a_mistake_is_one_sentence(call, args, says): refused(call(*args), says)


@pytest.mark.parametrize("url, says", [("http://127.0.0.1:9", "does not answer"), ("ftp//x", "https://")])
def test_a_hub_that_is_none(url, says, tmp_path):
    refused(process("run", "--hub", url, cwd=tmp_path), says)
    code, out, err = process("doctor", "--hub", url, cwd=tmp_path, HF_TOKEN="hf_aSecretThatNobodyMaySee")
    assert code == 2 and says in out and "hub" in err and "aSecret" not in out + err


def test_the_four_commands_of_the_flow_share_their_options():
    "run has one more, for the example."
    options = {name: [p.name for p in command.params] for name, command in get_command(app).commands.items()}
    shared = ["config", "hub", "report", "workdir", "settings", "force", "quiet"]
    assert options["train"] == options["evaluate"] == options["publish"] == shared
    assert [n for n in options["run"] if n != "example"] == shared


def test_a_bad_flow_yaml(call):
    Path("flow.yaml").write_text("prest: cpu\n")
    refused(call("run"), "flow.yaml", "'preset'")
    refused(call("plan", "flow.yaml"), "'preset'")


def test_debug_shows_where(call):
    code, out, err = call("run", "nowhere.yaml", "--debug")
    assert code == 2 and "Traceback" in err and err.strip().splitlines()[-1].startswith("hfflow: no config file")


def test_a_bug_says_so(call, monkeypatch):
    monkeypatch.setattr(doctor, "_python", lambda: 1 / 0)
    refused(call("doctor"), "a bug: ZeroDivisionError", "--debug", code=1)


def test_ctrl_c(call, monkeypatch):
    def pressed(): raise KeyboardInterrupt
    monkeypatch.setattr(doctor, "_python", pressed)
    refused(call("doctor"), "stopped", code=130)


def test_a_closed_pipe_is_no_error():
    p = subprocess.run(f"{sys.executable} -c 'import sys; from hfflow.cli import main; sys.exit(main())' doctor --json | head -1", shell=True, capture_output=True, text=True, timeout=120)
    assert p.stdout.strip() == "[" and "Traceback" not in p.stderr and "BrokenPipe" not in p.stderr


def test_a_port_that_is_taken(call, base):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        refused(call("serve", base, "--port", port), f"port {port} is taken")


def test_ids_that_do_not_exist(call, base):
    refused(call("serve", "you/cli-lama", "--port", 0), "did you mean 'you/cli-llama'")
    refused(call("space", "you/cli-lama"), "did you mean 'you/cli-llama'")
    refused(call("lineage", "you/cli-lama"), "did you mean 'you/cli-llama'")
    refused(call("plan", "you/cli-lama"), "did you mean 'you/cli-llama'")


# ---- each at work

def test_plan(call, base):
    code, out, err = call("plan", base, "--batch", 2, "--max-len", 32, "--rows", 100, "--json")
    assert code == 0, err
    assert json.loads(out)["peak_bytes"] > 0
    code, out, err = call("plan", base, "--gpu", "T4", "--rows", 100)
    assert code == 0 and "T4" in out and "8 rows of up to 256 tokens, 2 batches per step" in out and "from the preset t4" in out
    refused(call("plan", base, "--gpu", "T5"), "T4")


@pytest.mark.parametrize("args, setting", [
    (["--gpu", "h200"], dict(batch=32, accumulation=1, max_len=256)), (["--preset", "l4"], dict(batch=16, rank=16)), (["--gpu", "RTX 4090"], dict(batch=16)),
    (["--gpu", "cpu 8"], dict(batch=8, max_len=256)), (["--gpu", "cpu 8", "--preset", "auto"], dict(batch=8, rank=32)),
    (["--gpu", "T4", "--batch", 4, "--accumulation", 3, "--checkpointing", "--rank", 2, "--bits", 16, "--max-len", 64], dict(batch=4, accumulation=3, checkpointing=True, rank=2, bits=16, max_len=64))])
def test_a_plan_starts_from_the_settings_of_the_device(call, base, args, setting):
    code, out, err = call("plan", base, *args, "--json")
    made = json.loads(out)
    assert code == 0 and not err and {k: made["setting"][k] for k in setting} == setting and made["fits"] is True


def test_a_plan_that_does_not_fit_ends_with_1(call, base):
    line = ("plan", base, "--gpu", "cpu 1", "--batch", 512, "--rows", 9000)
    code, out, err = call(*line)
    assert code == 1 and not err and "NO: " in out and "This fits: batch=" in out
    code, out, err = call(*line, "--json", "--preset", "auto")
    made = json.loads(out)
    s = made["setting"]
    assert code == 0 and s["batch"] < 512 and s["batch"] * s["accumulation"] == 512 and "512 rows at once do not fit" in made["notes"][1]
    made = json.loads(call(*line, "--json")[1])
    assert not made["fits"] and made["nearest"] == {"batch": s["batch"], "accumulation": s["accumulation"]}


def test_a_plan_counts_the_rows_of_data(call, base):
    Path("talk.csv").write_text("prompt,completion\n" + "".join(f"say {i},{i}\n" for i in range(60)))
    code, out, err = call("plan", base, "--gpu", "T4", "--data", "talk.csv", "--json")
    made = json.loads(out)
    assert code == 0 and made["setting"]["longest"] < 64 and made["steps"] == 12 and made["tokens"] > 0, err     # 51 rows, 3 epochs
    assert json.loads(call("plan", base, "--gpu", "T4", "--data", "talk.csv", "--rows", 16000, "--json")[1])["steps"] == 3000
    refused(call("plan", base, "--data", "nowhere.csv"), "nowhere.csv")
    Path("flow.yaml").write_text(f"base: {base}\ndata: talk.csv\nrank: 4\n")
    code, out, err = call("plan", "flow.yaml", "--gpu", "T4", "--json")
    made = json.loads(out)
    assert code == 0 and made["setting"]["rank"] == 4 and made["setting"]["longest"] < 64 and made["steps"], err


def test_tables_of_a_plan(call, base):
    code, out, err = call("plan", base, "--gpu", "L4", "--batch", 2, "--max-len", 16, "--offers", "--compare")
    assert code == 0 and re.search(r"^flavor +GPU +fits", out, re.M) and re.search(r"^QLoRA +no +[\d.]+ .* yes$", out, re.M) and "None" not in out, out


@pytest.mark.parametrize("args, says", [
    (["--batch", 10**9], "between 1 and 4096"), (["--batch", 0], "batch: 1"), (["--max-len", 0], "max_len: 8"), (["--max-len", -5], "max_len: 8"), (["--rank", 10**6], "rank: 1024"),
    (["--bits", 5], "bits: 4"), (["--accumulation", 0], "accumulation: 1"), (["--rows", 0], "rows is 0"), (["--rows", -1], "rows is -1"), (["--preset", "big"], "auto, cpu, t4"),
    (["--max-len", 900000], "tokens at most")])
def test_sizes_that_cannot_be_planned(call, base, args, says): refused(call("plan", base, "--gpu", "T4", *args), says)


def test_models_that_cannot_be_planned(call, base, monkeypatch):
    refused(call("plan", "./nowhere"), "does not exist")
    Path("empty").mkdir()
    refused(call("plan", "empty"), "no config.json")
    Path("empty/config.json").write_text('{"model_type": "nothing"}')
    refused(call("plan", "empty"), "does not know")
    Path("empty/config.json").write_text('{"model_type": "llama", "hidden_size": -4}')
    refused(call("plan", "empty"), "config.json")
    Path("empty/config.json").write_text('{"model_type": "vit"}')
    refused(call("plan", "empty"), "vit")
    refused(call("plan", base + "@nowhere"), "no revision 'nowhere'")
    api = hubs.connect().api
    api.create_repo("you/cli-bare", exist_ok=True)
    refused(call("plan", "you/cli-bare"), "cli-bare")


def test_a_plan_of_a_hub_that_does_not_answer(tmp_path):
    refused(process("plan", "Qwen/Qwen3-8B", "--gpu", "t4", "--max-len", "2048", "--hub", "http://127.0.0.1:9", cwd=tmp_path), "does not answer")


def test_a_plan_of_a_gated_model(far, tmp_path):
    "Who may not read the config of a model is told what to do; a plan needs no account otherwise."
    from huggingface_hub import CommitOperationAdd
    url, token, api = far
    for name in ("ann/open", "ann/gated"):
        api.create_repo(name)
        config = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        api.create_commit(name, [CommitOperationAdd("config.json", json.dumps(config).encode())], commit_message="Add the config")
    api.update_repo_settings("ann/gated", gated="manual")
    line = ("--gpu", "t4", "--rows", "10", "--max-len", "16", "--hub", url)
    env = dict(HF_HOME=str(tmp_path), HF_TOKEN="")
    refused(process("plan", "ann/gated", *line, cwd=tmp_path, **env), "gated")
    code, out, err = process("plan", "ann/open", *line, cwd=tmp_path, **env)
    assert code == 0 and "ann/open: 0.0M parameters" in out, err


def test_data_and_lineage(call):
    Path("talk.csv").write_text("prompt,completion\n" + "".join(f"say {i},{i}\n" for i in range(30)) + "say 3,3\n")
    code, out, err = call("data", "talk.csv")
    assert code == 0 and "not registered" in out and "duplicate" in out, err
    code, out, err = call("data", "talk.csv", "--repo", "cli-talk")
    assert code == 0 and "registered you/cli-talk" in out, err
    Path("mail.csv").write_text("subject,folder\n" + "".join(f"a letter about the {x} number {i},{x}\n" for i in range(20) for x in ("parcel", "invoice")))
    refused(call("data", "mail.csv"), "{task: classify}")
    code, out, err = call("data", "mail.csv", "--task", "classify", "--repo", "cli-mail")
    assert code == 0 and "'folder' used as the label (2 values: invoice, parcel)" in out and "registered you/cli-mail" in out and not err, err
    code, out, err = call("lineage", "you/cli-talk")
    assert code == 0 and "cli-talk" in out, err
    code, out, err = call("lineage", "you/cli-talk", "--json")
    assert code == 0 and json.loads(out)


def test_the_flow_from_the_shell(call, base):
    Path("raw.csv").write_text("prompt,completion\n" + "".join(f"say {i},{i}\n" for i in range(40)))
    Path("flow.yaml").write_text(f"base: {base}\ndata: raw.csv\npreset: cpu\nrank: 4\nname: cli-flow\n"
                                 "train: {max_steps: 3, batch: 4, max_len: 64, threads: 1}\nevaluate: {limit: 2, max_new_tokens: 4}\nspace: {try_it: false}\n"
                                 "publish: {if: always}\n")     # three steps teach nothing
    code, out, err = call("train", "--report", "report.json")
    assert code == 0, err
    assert [s["status"] for s in json.loads(Path("report.json").read_text())["stages"]] == ["done"] * 4 + ["skipped"] * 3
    code, out, err = call("publish", "--quiet", "--report", "report.json")
    assert code == 0 and "[1/7]" not in out, err
    report = json.loads(Path("report.json").read_text())
    assert [s["status"] for s in report["stages"]] == ["kept"] * 4 + ["done"] * 2 + ["skipped"] and len(report["artifacts"]) == 2
    code, out, err = call("run", "--set", "evaluate.limit=3", "--report", "deep/report.json")
    assert code == 0 and "you/cli-flow-space" in out and "hfflow serve" in out and "(kept)" in out, err
    code, out, err = call("space", "you/cli-flow-cli-llama", "--sdk", "static", "--only-push")
    assert code == 0 and "pushed you/cli-flow-cli-llama-space" in out, err
    refused(call("space", "you/cli-flow-cli-llama", "--sdk", "streamlit"), "gradio")
    code, out, err = call("lineage", "you/cli-flow-space")
    assert code == 0 and "you/cli-flow-cli-llama" in out and "you/cli-flow" in out, err


def test_doctor(call, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_aSecretThatNobodyMaySee")
    code, out, err = call("doctor")
    assert code == 0 and "aSecret" not in out + err, err
    for check in ("python", "torch", "cpu", "gpu", "memory", "disk", "hub", "token"): assert re.search(rf"^{check} +(ok|note) ", out, re.M), out
    code, out, err = call("doctor", "--json")
    assert {r["status"] for r in json.loads(out)} <= {"ok", "note"}
    monkeypatch.setattr(doctor, "CHECKED", ("torch", "not-a-package"))
    code, out, err = call("doctor")
    assert code == 2 and "not-a-package" in err and "pip install" in out


def test_hub(tmp_path):
    "A Hub of its own, by processes of their own: start, status, stop."
    def hfflow(*args):
        code, out, err = process(*args, HFFLOW_HOME=str(tmp_path / "home"))
        return code, out.strip(), err
    assert hfflow("hub", "status")[0] == 1
    code, out, err = hfflow("hub", "start")
    try:
        assert code == 0 and re.fullmatch(r"Hub at http://127\.0\.0\.1:\d+", out), (out, err)
        assert hfflow("hub", "start")[1] == out
        code, status, _ = hfflow("hub", "status", "--json")
        assert code == 0 and json.loads(status)["url"] in out
    finally: assert hfflow("hub", "stop") == (0, "stopped", "")
    assert hfflow("hub", "stop")[1] == "it was not running"


def test_a_hub_that_may_run_programs(tmp_path):
    data = ("--data", str(tmp_path / "data"))
    try:
        code, out, err = process("hub", "start", "--jobs", *data)
        assert code == 0 and "no container" in out, (out, err)
        code, status, _ = process("hub", "status", "--json", *data)
        assert (code, json.loads(status)["may"]) == (0, ["jobs"])
        code, out, err = process("hub", "start", "--spaces", *data)
        assert code == 2 and "without spaces" in err and "hfflow hub stop" in err, (code, out, err)
        assert process("hub", "start", "--port", "99999", *data)[0] == 2
        assert process("hub", "start", *data)[0] == 0                    # it is found as it is
    finally: assert process("hub", "stop", *data)[1].strip() == "stopped"
    assert process("hub", "start", *data)[0] == 0
    try: assert json.loads(process("hub", "status", "--json", *data)[1])["may"] == []   # a right is given once
    finally: process("hub", "stop", *data)


@pytest.fixture
def far(tmp_path):
    "Another Hub, whose people are `ann`; its address, its token and a client."
    from huggingface_hub import HfApi
    from hfflow.localhub.server import running
    with running(tmp_path / "far", users=["ann:token-of-ann-0123456789"]) as (url, _):
        yield url, "token-of-ann-0123456789", HfApi(url, token="token-of-ann-0123456789")


def test_import_and_export(call, far, monkeypatch):
    from huggingface_hub import CommitOperationAdd, HfApi
    url, token, api = far
    add = lambda name, kind="model": api.create_commit("ann/cli-far", [CommitOperationAdd(name, b"\0" + name.encode())], commit_message=f"Add {name}", repo_type=kind)
    hub = hubs.connect()
    mine = HfApi(hub.endpoint, token=local_token(hub.data))
    api.create_repo("ann/cli-far", private=True)
    add("a.bin")
    refused(call("hub", "import", "ann/cli-far", "--from", url), "set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", token)
    code, out, err = call("hub", "import", "ann/cli-far", "--from", url + "/")
    assert code == 0 and "imported: " in out and "main: 2 new commits" in out and "1 large file, 6 B" in out and not err, (out, err)
    assert mine.model_info("ann/cli-far").sha == api.model_info("ann/cli-far").sha
    assert "nothing new" in call("hub", "import", "ann/cli-far", "--from", url)[1]
    mine.create_commit("ann/cli-far", [CommitOperationAdd("mine", b"1")], commit_message="Mine")
    refused(call("hub", "import", "ann/cli-far", "--from", url), "Mine", "--as")
    assert call("hub", "import", "ann/cli-far", "--from", url, "--as", "cli-near")[0] == 0 and mine.model_info("you/cli-near")
    code, out, err = call("hub", "import", "ann/cli-far", "--from", url, "--as", "cli-some", "--include", "*.bin")
    assert code == 0 and "the newest files alone" in out and mine.file_exists("you/cli-some", "a.bin"), err
    refused(call("hub", "import", "ann/cli-far", "--from", url, "--type", "dataset"), "--type model")

    code, out, err = call("hub", "export", "cli-near", "--to", url)
    assert code == 0 and "exported (private)" in out and api.model_info("ann/cli-near").private, err
    code, out, err = call("hub", "export", "you/cli-near", "--to", url, "--as", "ann/shown", "--public")
    assert code == 0 and not api.model_info("ann/shown").private, err
    refused(call("hub", "export", "you/cli-nearr", "--to", url), "has no model you/cli-nearr")
    refused(call("hub", "export", "you/cli-near", "--to", url, "--as", "bob/x"), "403")
    add("b.bin")
    refused(call("hub", "export", "ann/cli-far", "--to", url), "Add b.bin", "--force")
    assert call("hub", "export", "ann/cli-far", "--to", url, "--force")[0] == 0
    assert api.model_info("ann/cli-far").sha == mine.model_info("ann/cli-far").sha
    monkeypatch.setenv("HF_TOKEN", "wrong")
    refused(call("hub", "export", "you/cli-near", "--to", url), "does not know this token")
    monkeypatch.setenv("HF_TOKEN", mine.token)                 # the embedded Hub's goes nowhere else
    refused(call("hub", "export", "you/cli-near", "--to", url), "needs a token")
    for said in (out, err): assert token not in said


def test_check_and_gc(call, tmp_path):
    from hfflow.localhub.wire import Hub
    assert call("hub", "check")[:2] == (0, "all is well\n")
    code, out, err = call("hub", "gc", "--dry-run", "--older", "99w")
    assert code == 0 and out.splitlines()[-1] == "would free 0 B", err
    hub = Hub(tmp_path / "data")
    hub.db.add_user("you")
    key = hub.make_repo("model", "you/a", "you").key
    hub.db.set_repo(key, stale=1)
    code, out, err = call("hub", "check", "--data", tmp_path / "data")
    assert code == 1 and out.startswith("you/a  the search does not know its newest commit") and not err
    assert json.loads(call("hub", "check", "--data", tmp_path / "data", "--json")[1])[0]["where"] == "you/a"
    assert call("hub", "check", "--data", tmp_path / "data", "--repair")[0] == 0
    hub.store.delete(key)
    assert call("hub", "check", "--data", tmp_path / "data", "--repair")[0] == 1, "nobody said yes"
    assert call("hub", "check", "--data", tmp_path / "data", "--repair", "--yes")[0] == 0
    assert json.loads(call("hub", "gc", "--data", tmp_path / "data", "--json")[1])[0]["bytes"] == 0
    (tmp_path / "data/hub.sqlite3").write_bytes(b"no database" * 99)
    for f in (tmp_path / "data").glob("hub.sqlite3-*"): f.unlink()
    assert "damaged" in call("hub", "check", "--data", tmp_path / "data")[1]
    refused(call("hub", "gc", "--data", tmp_path / "data"), "run `hfflow hub check`")


def test_open(call, monkeypatch):
    import httpx
    import webbrowser
    hub, seen = hubs.connect(), []
    hub.api.create_repo("you/cli-open", repo_type="dataset", private=True, exist_ok=True)
    monkeypatch.setattr(webbrowser, "open", lambda url: seen.append(url) or True)
    code, out, err = call("hub", "open", "you/cli-open")
    assert code == 0 and out == f"Hub at {hub.endpoint}/datasets/you/cli-open\n", err
    with httpx.Client(trust_env=False, follow_redirects=True) as browser:
        page = browser.get(seen[0])
        assert page.status_code == 200 and str(page.url).endswith("/datasets/you/cli-open")
        assert browser.get(f"{hub.endpoint}/datasets/you/cli-open").status_code == 200
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    code, out, err = call("hub", "open")
    assert code == 0 and out.startswith(f"Hub at {hub.endpoint}; no browser") and f"\n{hub.endpoint}/login?" in out, err


def test_init(call):
    code, out, err = call("init", "my-project")
    assert code == 0 and Path("my-project/flow.yaml").is_file(), err
    refused(call("init", "my-project"), "my-project")


@pytest.mark.slow
def test_serve_and_stop(base, tmp_path):
    "The server answers, and Ctrl-C ends it without a traceback."
    import signal
    from urllib.request import urlopen
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open(tmp_path / "log", "w") as log:
        p = subprocess.Popen([*HFFLOW, "serve", base, "--port", str(port)], stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as r: assert r.status == 200
                    break
                except OSError: time.sleep(0.2)
                assert p.poll() is None, (tmp_path / "log").read_text()
            else: raise AssertionError((tmp_path / "log").read_text())
            p.send_signal(signal.SIGINT)
            p.wait(30)
        finally: p.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()
