"""Spaces: what is written, what is pushed, and that a running one answers, phones nobody and leaves nothing behind."""
import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

import published
from hfflow import publish, spaces
from hfflow.engine import runner, spacefiles
from hfflow.hub import Artifact, UserError, connect, home

PROMPT, ANSWER = next(iter(published.PAIRS.items()))


@pytest.fixture(scope="module")
def hub():
    return connect()


@pytest.fixture(scope="module")
def model(hub, tmp_path_factory):
    return published.make(hub.user, tmp_path_factory.mktemp("run")).model


@pytest.fixture
def static(tmp_path):
    """A Space that starts at once."""
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntitle: Page\nsdk: static\napp_file: page.html\n---\n")
    (folder / "page.html").write_text("<h1>Here</h1>")
    return folder


SERVER = "import http.server, os\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()\n"


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def group(repo_id):
    """The processes of a Space that still run: its guard, and its program with all it started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ") as f:
                if f"\0SPACE_ID={repo_id}\0" in "\0" + f.read() and alive(pid):
                    found.append(int(pid))
        except OSError:
            pass
    return found


def left_behind():
    """Copies of Spaces on the Hub, and the folders of Spaces that are gone."""
    api = connect().api
    there = {s.id: api.space_info(s.id) for s in api.list_spaces(author="you")}
    folders = [p for p in (home() / "hub" / "spaces").glob("*") if p.is_dir()]
    return [i for i in there if "-run-" in i] + [p.name for p in folders][len(there):]


# --- what is written ----------------------------------------------------------------------------
@pytest.mark.parametrize("sdk, names", [
    ("gradio", {"app.py", "README.md", "requirements.txt", "lineage.json"}),
    ("docker", {"app.py", "Dockerfile", "README.md", "requirements.txt", "lineage.json"}),
    ("static", {"index.html", "README.md", "lineage.json"}),
])
def test_files_are_complete_and_valid(model, tmp_path, sdk, names):
    folder = spaces.build(model, tmp_path, sdk=sdk, title='A "title": with # and <b>', about="It's\n`code`", examples=['say "hi"\n\\ {{ x }}', "é <i>"])
    assert {p.name for p in folder.iterdir()} == names
    for name in names:
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"{%|%}|{#", text), name
        if name.endswith(".py"):
            tree = ast.parse(text)
            assert f"REVISION = '{model.revision}'" in text
            used = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            used |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            third = used - set(sys.stdlib_module_names)
            assert third <= {"gradio", "streamlit", "torch", "transformers", "peft", "yaml", "spaces"}, third
    meta = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert meta["title"] == 'A "title": with # and <b>' and meta["sdk"] == sdk
    assert meta["models"] == [model.repo_id] and meta["datasets"] == ["you/rows"]
    note = json.loads((folder / "lineage.json").read_text())
    assert note["inputs"][0]["revision"] == model.revision and note["chain"]["data"]["repo_id"] == "you/rows"


def test_requirements_are_lower_bounds(model, tmp_path):
    lines = (spaces.build(model, tmp_path / "g") / "requirements.txt").read_text().split()
    assert [re.split(">=", x)[0] for x in lines] == ["torch", "transformers", "peft", "pyyaml"]
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", x) for x in lines)


def test_gradio_version_is_the_tested_one(model, tmp_path):
    from importlib.metadata import version

    assert spacefiles.meta(spaces.build(model, tmp_path))["sdk_version"] == version("gradio")


def test_examples_come_from_what_it_answered_right(model, tmp_path):
    app = (spaces.build(model, tmp_path) / "app.py").read_text()
    assert all(repr(p) in app for p in published.PAIRS) and "LANGUAGE = 'yaml'" in app


def test_dockerfile_declares_user_port_and_command(model, tmp_path):
    folder = spaces.build(model, tmp_path, sdk="docker")
    text = (folder / "Dockerfile").read_text()
    assert all(re.search(p, text, re.M) for p in (r"^FROM python:3", r"^USER user", r"^EXPOSE 7860", r"^CMD \["))
    assert spacefiles.meta(folder)["app_port"] == 7860
    assert json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])[:3] == ["streamlit", "run", "app.py"]
    assert "streamlit" in (folder / "requirements.txt").read_text()


def test_static_page_shows_figures_and_asks_nobody(model, tmp_path):
    html = (spaces.build(model, tmp_path, sdk="static") / "index.html").read_text()
    assert "<td>3</td><td>3</td>" in html and model.short in html and "base: qwen" in html
    assert not re.search(r'(src|@import|url\()\s*=?\s*["\']?https?:', html)


def test_odd_requests_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="use gradio, docker or static"):
        spaces.build(model, tmp_path, sdk="shiny")
    with pytest.raises(UserError, match="is a dataset"):
        spaces.build(Artifact.at("dataset", "you/rows"), tmp_path)
    with pytest.raises(UserError, match="neither an adapter nor full weights"):
        spaces.build(publish.commit("model", "you/empty", {"notes.txt": b"x"}, "Notes"), tmp_path)


# --- classifiers ---
def classifier(repo_id, folder, **changes):
    """A classifier of random weights, whole, on the Hub."""
    import tinychat
    import zoo

    zoo.model("bert", **changes).save_pretrained(folder)
    tinychat.tokenizer().save_pretrained(folder)
    return publish.commit("model", repo_id, {p.name: p for p in folder.iterdir()}, "Add a classifier")


NAMES = dict(id2label={0: "late", 1: 'too "dear"', 2: "broken"}, label2id={"late": 0, 'too "dear"': 1, "broken": 2})


def test_files_for_a_classifier_know_its_labels_and_nothing_of_chats(hub, tmp_path):
    made = classifier("you/sorts", tmp_path / "model", **NAMES)
    folder = spaces.build(made, tmp_path / "space")
    app = (folder / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "LABELS = ['late', 'too \"dear\"', 'broken']" in app and "KIND = 'single_label_classification'" in app
    assert not re.search(r"yaml|chat|generat|CausalLM|peft import|{%|\n\n\n\n", app)
    assert "pyyaml" not in (folder / "requirements.txt").read_text() and "adapter" not in (folder / "README.md").read_text()
    html = (spaces.build(made, tmp_path / "page", sdk="static") / "index.html").read_text()
    assert "text-classification" in html and "chat" not in html
    with pytest.raises(UserError, match="'classify', for which no docker Space is made here: use gradio or static"):
        spaces.build(made, tmp_path / "never", sdk="docker")
    with pytest.raises(UserError, match="'seq2seq', for which no gradio Space is made here: load it"):
        config = dict(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True)
        spaces.build(publish.commit("model", "you/rewrites", {"config.json": json.dumps(config).encode()}, "Add"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_classifier_answers_as_its_kind_of_labels_asks(hub, tmp_path, kind):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    more = dict(num_labels=1) if kind == "regression" else NAMES
    made = classifier(f"you/{kind.replace('_', '-')}", tmp_path / "model", problem_type=kind, **more)
    net, tok = (c.from_pretrained(tmp_path / "model") for c in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad(): scores = net(**tok("it came late", return_tensors="pt")).logits[0]
    with spaces.start(spaces.build(made, tmp_path / "space")) as app:
        answer = app.ask("  it came late\n")
        with pytest.raises(UserError, match="too long"): app.ask("late " * 100)
    if kind == "regression": assert float(answer) == pytest.approx(scores.item(), rel=1e-3)
    else:
        want = dict(zip(NAMES["id2label"].values(), scores.sigmoid().tolist()))
        assert answer == pytest.approx(want, abs=1e-4) and list(answer) == sorted(want, key=want.get, reverse=True)
    assert "Traceback" not in app.logs(), app.logs(30)


# --- push ---------------------------------------------------------------------------------------
def test_push_is_one_commit_and_repeats_none(hub, model, tmp_path):
    folder = spaces.build(model, tmp_path / "space")
    (folder / ".env").write_text("TOKEN=secret")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    space = spaces.push(folder, "you/pushed", model)
    assert spaces.push(folder, "you/pushed", model) == space
    assert len(hub.api.list_repo_commits(space.repo_id, repo_type="space")) == 2
    assert set(hub.api.list_repo_files(space.repo_id, repo_type="space")) == {".gitattributes", "README.md", "app.py", "lineage.json", "requirements.txt"}
    assert publish.verify(space).ok
    tree = publish.lineage(space)
    assert [n.role for n in tree.root.walk()][:4] == ["space", "model", "base", "data"]


def test_push_refuses_a_folder_of_another_model(model, tmp_path):
    folder = spaces.build(model, tmp_path)
    with pytest.raises(UserError, match="build it again"):
        spaces.push(folder, "you/never", Artifact("model", "you/other", "0" * 40, ""))
    with pytest.raises(UserError, match="names no sdk"):
        (folder / "README.md").write_text("# no metadata")
        spaces.push(folder, "you/never", model)


# --- running ------------------------------------------------------------------------------------
def test_an_app_that_runs_ends_with_its_group(static):
    with spaces.start(gradio_like(static, SERVER)) as app:
        assert app.running and len(group(app.repo_id)) == 2          # the guard and the server
        assert app.url in app._repr_markdown_()
        page(app, "page.html")
    assert group(app.repo_id) == [] and not left_behind() and "GET /" in app.logs() and not app.running
    app.stop()                                                 # a second time does nothing
    assert "stopped" in app._repr_markdown_()


def test_a_static_page_is_the_file_that_its_metadata_names(static):
    with spaces.start(static) as app:
        assert app.running and "<h1>Here</h1>" in page(app)
        with pytest.raises(UserError, match="has no /ask"):
            app.ask("x")
    assert not left_behind()


def test_an_exception_stops_it(static):
    with pytest.raises(KeyboardInterrupt):
        with spaces.start(gradio_like(static, SERVER)) as app:
            assert group(app.repo_id)
            raise KeyboardInterrupt
    assert group(app.repo_id) == [] and not left_behind()


def test_it_ends_when_whoever_started_it_is_killed(static):
    code = f"from hfflow import spaces; a = spaces.start({str(gradio_like(static, SERVER))!r}); print(a.repo_id, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    repo_id = parent.stdout.readline().strip()
    assert group(repo_id)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    end = time.monotonic() + 30
    while (group(repo_id) or left_behind()) and time.monotonic() < end:
        time.sleep(0.05)
    assert group(repo_id) == [] and not left_behind()


def test_a_space_on_the_hub_runs_itself_and_is_left_as_it_was(hub, static):
    repo_id = "you/runs-itself"
    hub.api.create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
    sha = hub.api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=gradio_like(static, SERVER)).oid
    assert hub.api.get_space_runtime(repo_id).stage == "STOPPED", "a push alone starts nothing"
    first = Artifact("space", repo_id, sha, "")
    with spaces.start(first) as app:
        assert app.repo_id == repo_id and group(repo_id)
        with spaces.start(first) as second: assert second.repo_id == repo_id
        assert app.running, "whoever finds it running leaves it running"
    assert hub.api.get_space_runtime(repo_id).stage == "PAUSED" and group(repo_id) == []
    hub.api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=repo_id, repo_type="space")
    with spaces.start(first) as app:                           # not the newest commit: a copy of that one
        assert app.repo_id.startswith("you/runs-itself-run-")
        assert "new.txt" not in hub.api.list_repo_files(app.repo_id, repo_type="space")
    hub.api.delete_repo(repo_id, repo_type="space")
    assert not left_behind()


def gradio_like(static, code):
    """Turn the folder into a Space that runs this code instead of an app."""
    (static / "README.md").write_text("---\nsdk: gradio\napp_file: app.py\n---\n")
    (static / "app.py").write_text(code)
    return static


def test_a_failing_app_tells_its_last_lines(static):
    with pytest.raises(UserError, match="(?s)Exit code: 1.*ZeroDivisionError"):
        spaces.start(gradio_like(static, "print('starting')\n1 / 0\n"))
    assert not left_behind()


def test_a_silent_app_is_given_up_and_ended(static):
    code = "import os, subprocess, sys, time\nprint('pids', os.getpid(), subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid, flush=True)\ntime.sleep(99)\n"
    with pytest.raises(UserError, match="did not answer within 2 s") as failed:
        spaces.start(gradio_like(static, code), timeout=2)
    pids = re.search(r"pids (\d+) (\d+)", str(failed.value)).groups()
    assert not any(map(alive, pids)) and not left_behind()


def test_a_port_and_missing_files_are_named(static, hub):
    with pytest.raises(UserError, match="port is 7860.*leave port out"):
        spaces.start(static, port=7860)
    with pytest.raises(UserError, match="no `app.py`"):
        (gradio_like(static, "") / "app.py").unlink()
        spaces.start(static)
    with pytest.raises(UserError, match="is not a folder"):
        spaces.start(static / "nothing")
    assert not left_behind()


def test_a_docker_space_runs_the_command_that_its_dockerfile_names(static):
    (static / "README.md").write_text("---\nsdk: docker\napp_port: 7860\n---\n")
    (static / "app.py").write_text(SERVER)
    (static / "Dockerfile").write_text('FROM python:3.12\nWORKDIR /app\nCOPY . .\nCMD ["python", "app.py"]\n')
    with spaces.start(static) as app: assert "Here" in page(app, "page.html")
    (static / "Dockerfile").write_text('FROM x\nCMD ["no-such-program"]\n')
    with pytest.raises(UserError, match="(?s)Exit code: 127.*no-such-program cannot be started"):
        spaces.start(static)
    (static / "Dockerfile").write_text("FROM x\n")
    with pytest.raises(UserError, match="needs a FROM and a CMD"):
        spaces.start(static)
    assert not left_behind()


def test_streamlit_does_not_phone_home(model, tmp_path):
    folder = spaces.build(model, tmp_path, sdk="docker")
    (folder / "requirements.txt").write_text("")               # what is tested is how it would be started
    (folder / "Dockerfile").write_text((folder / "Dockerfile").read_text().replace('"streamlit", "run", "app.py"', '"python", "app.py"').replace("RUN", "# RUN"))
    (folder / "app.py").write_text(SHOWS.replace("GRADIO_SERVER_PORT", "STREAMLIT_SERVER_PORT"))
    with spaces.start(folder) as app: said = json.loads(page(app))
    assert said["env"]["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] == "false" and said["env"]["STREAMLIT_SERVER_ADDRESS"] == "127.0.0.1"


SHELL = dict(AWS_SECRET_ACCESS_KEY="aws-1", OPENAI_API_KEY="sk-2", GITHUB_TOKEN="ghp-3", SSH_AUTH_SOCK="/run/agent-4", HUGGING_FACE_HUB_TOKEN="hf-5",
             DATABASE_URL="postgres://me:pass-6@db", HF_OIDC_RESOURCE="res-7", LC_API_TOKEN="lc-8", OMP_SECRET="omp-9", HF_TOKEN_PATH="/tmp/token-10",
             HTTPS_PROXY="http://me:pass-11@proxy:1", KUBECONFIG="/kube-12", MY_OWN="own-13", PYTHONSTARTUP="/start-14.py", BASH_ENV="/bash-15")

# A Space that shows its environment, the token that the client finds, and what the Hub answers when it tries to write.
SHOWS = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from huggingface_hub import HfApi, get_token
def tried(f, *args, **kw):
    try: return str(f(*args, **kw))[:80]
    except Exception as e: return type(e).__name__ + " " + str(getattr(getattr(e, "response", None), "status_code", ""))
said = dict(env=dict(os.environ), token=get_token(), home=str(Path.home()), who=tried(HfApi().whoami),
            wrote=tried(HfApi().create_repo, "you/never-made"), read=HfApi().model_info("hfflow/tiny-llama").sha)
class Page(BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(said).encode())
HTTPServer(("127.0.0.1", int(os.environ["GRADIO_SERVER_PORT"])), Page).serve_forever()
"""


def page(app, path=""):
    from urllib.request import ProxyHandler, build_opener

    return build_opener(ProxyHandler({})).open(app.url + path, timeout=30).read().decode()


def fresh(tmp_path, folder, more, **kw):
    """What a Space says that runs on a Hub of its own, started from a shell with these variables; and the Hub's own variables."""
    code = f"""
import json, urllib.request
from hfflow import hub, spaces
hub.connect()
try:
    with spaces.start({str(folder)!r}, **{kw!r}) as app:
        said = json.loads(urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(app.url, timeout=30).read())
    said["hub"] = open(f"/proc/{{hub.status()['pid']}}/environ").read()
    print(json.dumps(said))
finally: hub.stop()"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HFFLOW_"))} | more | dict(HFFLOW_HOME=str(tmp_path / "fresh"))
    p = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    return json.loads(p.stdout.splitlines()[-1])


def test_no_secret_of_the_shell_reaches_an_app_and_it_can_read_but_not_write(hub, static, monkeypatch):
    for name, value in SHELL.items(): monkeypatch.setenv(name, value)
    assert os.environ["HF_TOKEN"]
    with spaces.start(gradio_like(static, SHOWS)) as app: said = json.loads(page(app))
    assert not set(said["env"]) & ({"HF_TOKEN"} | set(SHELL)), sorted(said["env"])
    values = [*SHELL.values(), os.environ["HF_TOKEN"]]
    assert not [k for k, v in said["env"].items() if any(x in v for x in values)]
    assert said["token"] is None and said["who"].startswith("LocalTokenNotFoundError")
    assert said["wrote"].split()[1] == "401" and not hub.api.repo_exists("you/never-made")
    assert len(said["read"]) == 40 and said["home"] != str(os.path.expanduser("~"))
    assert said["env"]["HF_ENDPOINT"] == hub.endpoint and said["env"]["PATH"] and "HF_HUB_OFFLINE" not in said["env"]
    with pytest.raises(OSError): open(said["home"])               # it goes with the app


def test_a_hub_started_from_a_shell_with_secrets_holds_none(static, tmp_path):
    said = fresh(tmp_path, gradio_like(static, SHOWS), SHELL)
    assert not set(said["env"]) & ({"HF_TOKEN"} | set(SHELL)), sorted(said["env"])
    for where in (said["hub"], json.dumps(said["env"])):           # an app can read the variables of its neighbours
        assert not [v for v in SHELL.values() if v in where] and "PATH" in where


def test_what_an_app_needs_is_given_to_it_alone(static, tmp_path):
    import certifi

    shell = dict(OMP_NUM_THREADS="1", HTTPS_PROXY="http://proxy:1", LC_ALL="C.UTF-8", SSL_CERT_FILE=certifi.where(), SPACE_ID="old")
    said = fresh(tmp_path, gradio_like(static, SHOWS), shell, env=dict(OPENAI_API_KEY="sk-mine", LC_ALL="C"))
    given = {"OMP_NUM_THREADS": "1", "HTTPS_PROXY": "http://proxy:1", "LC_ALL": "C", "SSL_CERT_FILE": certifi.where(), "OPENAI_API_KEY": "sk-mine"}
    assert given.items() <= said["env"].items() and said["env"]["SPACE_ID"].startswith("you/static-run-") and "OPENAI_API_KEY" not in os.environ
    assert said["env"]["HF_HOME"].startswith(said["home"]) and "127.0.0.1" in said["env"]["NO_PROXY"] and "sk-mine" not in said["hub"]
    with pytest.raises(UserError, match="env.*'PORT'.*text"): spaces.start(static, env={"PORT": 1})


def test_the_space_of_a_private_model_gets_the_model_and_no_token(hub, tmp_path, monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    made = published.make(hub.user, tmp_path / "run")
    closed = made.push("you/closed", private=True)
    with pytest.raises(RepositoryNotFoundError): hub.api.model_info(closed.repo_id, token=False)
    space = spaces.push(spaces.build(closed, tmp_path / "space"), "you/closed-space", closed, private=True)
    for name, value in SHELL.items(): monkeypatch.setenv(name, value)
    import shutil
    from huggingface_hub import constants
    for p in ("closed", "base"): shutil.rmtree(f"{constants.HF_HUB_CACHE}/models--you--{p}")     # nothing that happens to lie there
    with spaces.start(space) as app:
        assert app.ask(PROMPT) == ANSWER
        with open(f"/proc/{group(app.repo_id)[-1]}/environ") as f: env = f.read()
        with pytest.raises(RepositoryNotFoundError): hub.api.space_info(app.repo_id, token=False)
    assert "HF_TOKEN" not in env and os.environ["HF_TOKEN"] not in env and "HF_HUB_OFFLINE=1" in env


def test_a_strangers_space_is_lent_nothing(hub, model, tmp_path):
    from dataclasses import replace

    closed = publish.commit("model", "you/not-for-others", {"config.json": b"{}"}, "Add", private=True)
    (tmp_path / "README.md").write_text(f"---\nsdk: gradio\nmodels: [{closed.repo_id}]\n---\n")
    there, space = replace(hub, embedded=False), Artifact("space", "stranger/app", "0" * 40, "")
    assert runner._lent(hub, space, tmp_path) == {}
    ours = replace(space, repo_id="you/app")
    assert runner._lent(hub, ours, tmp_path)["HF_HUB_OFFLINE"] == "1" == runner._lent(hub, None, tmp_path)["HF_HUB_OFFLINE"]
    assert runner._lent(there, ours, tmp_path) == {}, "another machine has no cache of ours"
    (tmp_path / "README.md").write_text(f"---\nsdk: gradio\nmodels: [{model.repo_id}, nobody/has-this]\n---\n")
    assert runner._lent(hub, None, tmp_path) == {}, "open to all: there is nothing to lend"


class Sink:
    """A proxy that answers nothing and remembers who asked for what."""

    def __init__(self):
        self.asked, self.socket = [], socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with peer:
                self.asked.append(peer.recv(300).split(b"\r\n")[0].decode(errors="replace"))


def test_the_gradio_space_answers_from_the_hub_and_calls_nobody(hub, model, tmp_path, monkeypatch):
    space = spaces.push(spaces.build(model, tmp_path), "you/answering", model)
    sink = Sink()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, sink.url)
        monkeypatch.setenv(name.lower(), sink.url)
    with spaces.start(space) as app:
        assert {p: app.ask(p) for p in published.PAIRS} == published.PAIRS
        with pytest.raises(UserError, match="Write a request first"):
            app.ask("   ")
        with pytest.raises(UserError, match="too long"):
            app.ask("word " * 400)
        assert app.ask(f"  {PROMPT}\n") == ANSWER
        repo_id = app.repo_id
    assert sink.asked == []
    sink.socket.close()
    assert repo_id == space.repo_id and group(repo_id) == [] and not left_behind()
    assert "Traceback" not in app.logs(), app.logs(30)
    with pytest.raises(UserError, match="not running"):
        app.ask(PROMPT)
