"""Connecting: many at once, after crashes, too late, to Hubs that are not there; artifacts and provenance."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hfflow import hub
from hfflow.engine import connection, process
from hfflow.hub import Artifact, UserError


def python(code, **env):
    "Run code in a fresh process; its last line of output as JSON."
    full = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HFFLOW_HUB"))} | env
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                         env={k: v for k, v in full.items() if v is not None})
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


CONNECT = "import json; from hfflow import hub; h = hub.connect(); print(json.dumps([h.endpoint, h.user, h.embedded, hub.status()['pid']]))"


@pytest.fixture
def home(tmp_path):
    "A home of its own, whose Hub is stopped afterwards."
    yield tmp_path / "home"
    hub.stop(tmp_path / "home/hub")


@pytest.fixture(scope="module", autouse=True)
def me():
    return hub.connect()


class Odd(BaseHTTPRequestHandler):
    "A server that is no Hub: what it says depends on the path's first part."
    def do_GET(self):
        code = {"refuse": 401, "forbid": 403, "moved": 302, "broken": 500, "web": 200}[self.path.split("/")[1]]
        self.server.seen.append(self.headers.get("Authorization"))
        self.send_response(code)
        if code == 302: self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/web/api/x")
        self.end_headers()
        if code == 200: self.wfile.write(b"<html>hello</html>")
    def log_message(self, *args): pass


@pytest.fixture
def odd():
    server = HTTPServer(("127.0.0.1", 0), Odd)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_eight_at_once_make_one_server_that_survives_kill_and_stop(home):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HFFLOW_HOME": str(home)}

    def at_once():
        "Eight processes connect; the one answer of all."
        runs = [subprocess.Popen([sys.executable, "-c", CONNECT], stdout=subprocess.PIPE, text=True, env=env) for _ in range(8)]
        outs = [r.communicate(timeout=120)[0] for r in runs]
        assert [r.returncode for r in runs] == [0] * 8
        answers = {o.strip().splitlines()[-1] for o in outs}
        assert len(answers) == 1, answers
        return json.loads(answers.pop())

    url, user, embedded, pid = at_once()
    assert (user, embedded) == ("you", True)
    data = home / "hub"
    assert (data / "token").stat().st_mode & 0o777 == 0o600
    token = (data / "token").read_text().strip()
    assert len(token) >= 64
    said = " ".join(Path(f"/proc/{pid}/cmdline").read_text().split("\0")) if Path("/proc").exists() else ""
    assert token not in said + (data / "hub.log").read_text() + (data / "hub.json").read_text()

    os.kill(pid, signal.SIGKILL)                                   # a crash: same address, new process
    again = at_once()
    assert again[0] == url and again[3] != pid

    (data / "token").unlink()                                      # the running server knows another token
    third = python(CONNECT, HFFLOW_HOME=str(home))
    assert third[3] != again[3] and (data / "token").read_text().strip() != token

    state = json.loads((data / "hub.json").read_text())            # a stale file that names somebody else's process
    assert hub.stop(data) is True and hub.status(data) is None
    (data / "hub.json").write_text(json.dumps(state | {"pid": os.getpid()}))
    assert hub.status(data) is None and hub.stop(data) is False
    (data / "hub.json").write_text("{damaged")
    assert hub.status(data) is None and hub.stop(data) is False


def test_taken_port_is_given_up(home):
    import socket
    data = home / "hub"
    data.mkdir(parents=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        (data / "hub.json").write_text(json.dumps({"port": s.getsockname()[1]}))
        url = process.ensure(data)
        assert url != f"http://127.0.0.1:{s.getsockname()[1]}"


def test_server_that_dies_or_never_answers(tmp_path, monkeypatch):
    data = tmp_path / "hub"
    data.mkdir()
    monkeypatch.setattr(process, "_LAUNCH", "import sys; sys.exit('no room: ' + open(sys.argv[2] + '/token').read())")
    with pytest.raises(UserError, match=r'ended while starting: "no room: \(token\)"'): process.ensure(data)
    monkeypatch.setattr(process, "_LAUNCH", "import time; print('warming up'); time.sleep(60)")
    pid = process._spawn(data)
    with pytest.raises(UserError, match='did not answer within 1 seconds: "warming up"'): process._wait(data, pid, limit=1)
    assert hub.stop(data) is True


def test_stopped_by_another_than_who_started_it(home):
    """A notebook that started the Hub goes on running, and never asks how it ended: nobody waits for that, and nobody is told of a bug."""
    data = home / "hub"
    hub.start(data)
    assert python(f"import json; from hfflow import hub; print(json.dumps([hub.stop({str(data)!r}), hub.status({str(data)!r})]))") == [True, None]
    url = hub.start(data)
    assert hub.status(data)["url"] == url and hub.stop(data) is True


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set HFFLOW_HOME"): process.ensure(tmp_path / "file" / "hub")


def test_environment_before_the_clients(me, home):
    code = """
import json, os, sys
from hfflow import hub
heavy = [m for m in ('torch', 'transformers', 'datasets', 'peft', 'huggingface_hub', 'matplotlib') if m in sys.modules]
h = hub.connect()
import huggingface_hub.constants as c, datasets.config as d
print(json.dumps([heavy, c.ENDPOINT == h.endpoint == d.HF_ENDPOINT, c.HF_HUB_DISABLE_XET, c.HF_HUB_CACHE, str(d.HF_DATASETS_CACHE),
                  c.HF_HUB_OFFLINE, os.environ['NO_PROXY'], os.environ['HF_TOKEN'] in repr(h)]))
"""
    heavy, same, no_xet, cache, datasets_cache, offline, proxy, leaked = python(
        code, HFFLOW_HOME=os.environ["HFFLOW_HOME"], HF_HUB_OFFLINE="1", NO_PROXY="example.org", HF_TOKEN="hf_real",
        HF_ENDPOINT="https://elsewhere.example", HTTP_PROXY="http://127.0.0.1:9")
    assert not heavy and same and no_xet and not offline and not leaked
    assert cache.startswith(os.environ["HFFLOW_HOME"]) and datasets_cache.startswith(os.environ["HFFLOW_HOME"])
    assert proxy == "example.org,127.0.0.1,localhost"


def test_too_late(me):
    code = """
import json
import huggingface_hub.constants
from hfflow import hub
try: hub.connect(); print(1)
except hub.UserError as e: print(json.dumps(str(e)))
"""
    text = python(code, HFFLOW_HOME=os.environ["HFFLOW_HOME"])
    assert text.startswith("huggingface_hub was imported before hub.connect()") and "restart the kernel" in text


def test_other_hub_with_a_token_and_back(me, home):
    "Tokens and settings of two Hubs are never mixed up, and child processes join the same Hub."
    code = """
import json, os, subprocess, sys
from hfflow import hub
a = hub.connect()
one = os.environ['HF_TOKEN']
token = open(os.environ['OTHER_TOKEN']).read().strip()
b = hub.connect(os.environ['OTHER'], token=token)
two = os.environ['HF_TOKEN']
xet = os.environ.get('HF_HUB_DISABLE_XET')
child = subprocess.run([sys.executable, '-c', 'from hfflow import hub; h = hub.connect(); print(h.endpoint, h.user)'], capture_output=True, text=True).stdout
c = hub.connect(data=a.data)
three = os.environ['HF_TOKEN']
d = hub.connect(os.environ['OTHER'])
print(json.dumps([a == c, one != two, two == token, xet, b.embedded, child.split(), three == one, [d.user, 'HF_TOKEN' in os.environ]]))
"""
    python(CONNECT, HFFLOW_HOME=str(home))        # the first connect puts the base model there by the client; then it is too late
    back, differ, given, xet, embedded, child, restored, anonymous = python(
        code, HFFLOW_HOME=str(home), OTHER=me.endpoint, OTHER_TOKEN=str(me.data / "token"))
    assert back and differ and given and restored
    assert xet is None and not embedded
    assert child == [me.endpoint, "you"]
    assert anonymous == [None, False]             # without a token: reading only, and nothing of the embedded Hub's is sent


def test_a_real_token_from_the_environment_stays_what_it_was(me, odd, home):
    code = """
import json, os
from hfflow import hub
hub.connect()
try: hub.connect(os.environ['OTHER'])
except hub.UserError as e: print(json.dumps([str(e), os.environ['HF_TOKEN'].startswith('hfflow_')]))
"""
    text, embedded_again = python(code, HFFLOW_HOME=os.environ["HFFLOW_HOME"], HF_TOKEN="hf_real",
                                  OTHER=f"http://127.0.0.1:{odd.server_port}/refuse")
    assert "refuses the token (401)" in text and embedded_again
    assert odd.seen == ["Bearer hf_real"]         # the user's own, not the embedded Hub's


@pytest.mark.parametrize("path, said", [
    ("refuse", "refuses the token"), ("forbid", "refuses the token"), ("moved", "redirects to"),
    ("broken", "not as a Hub does (status 500)"), ("web", "not as a Hub does (status 200)")])
def test_odd_endpoints(odd, path, said):
    with pytest.raises(UserError) as e: connection._whoami(f"http://127.0.0.1:{odd.server_port}/{path}", "hf_x")
    assert said in str(e.value) and "hf_x" not in str(e.value)
    assert len(odd.seen) == 1                     # a redirect is not followed: the token stays here


def test_nobody_there_and_no_address(me):
    with pytest.raises(UserError, match="does not answer"): connection._whoami("http://127.0.0.1:9")
    for text in ("huggingface.co", "ftp://x", "http://"):
        with pytest.raises(UserError, match="is not the address of a Hub"): connection._remote(text)
    before = dict(os.environ)
    with pytest.raises(UserError, match="restart the kernel"):
        import huggingface_hub.constants  # noqa: F401
        hub.connect("http://127.0.0.1:9")
    assert dict(os.environ) == before


def test_same_hub_by_address_or_folder(me):
    assert hub.connect(me.endpoint) == me == hub.connect(data=me.data)
    os.environ.pop("HFFLOW_HUB", None)
    start = time.perf_counter()
    assert hub.connect() == me
    assert time.perf_counter() - start < 2


def test_artifacts(me):
    me.api.create_repo("you/art", exist_ok=True)
    a = Artifact.at("model", "you/art")
    assert len(a.revision) == 40 and a.url == f"{me.endpoint}/you/art/tree/{a.revision}" and a.short == a.revision[:8]
    assert Artifact.from_dict(a.as_dict() | {"more": 1}) == a
    assert Artifact.at("model", "you/art", a.revision) == a
    for args, said in ((("model", "you/none"), "is not on"), (("model", "you/art", "none"), "has no revision 'none'"),
                       (("dataset", "you/art"), "is not on"), (("thing", "you/art"), "not a kind of repo"),
                       (("model", "a b c"), "is not on")):
        with pytest.raises(UserError, match=said): Artifact.at(*args)
    with pytest.raises(UserError, match="not a commit"): Artifact("model", "you/art", "main", "")


def test_provenance(me, tmp_path):
    from hfflow.data import DataConfig
    note = hub.provenance("dataset", [], DataConfig(seed=3))
    assert note["config"]["seed"] == 3 and note["code"]["version"]
    assert json.loads(json.dumps(note)) == note
    assert str(Path.home()) not in json.dumps(note)


def test_seed_is_one_commit_and_then_none(me, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub/model.safetensors").write_bytes(bytes(3000))
    titles = lambda: [c.title for c in me.api.list_repo_commits("hfflow/seeded")]
    connection._seed(me, folder, "hfflow/seeded")
    connection._seed(me, folder, "hfflow/seeded")
    assert len(titles()) == 2
    next(me.data.glob("seed-hfflow-seeded.json")).unlink()          # forgotten, but compared by content
    connection._seed(me, folder, "hfflow/seeded")
    assert len(titles()) == 2
    (folder / "config.json").unlink()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# New\n")
    threads = [threading.Thread(target=connection._seed, args=(me, folder, "hfflow/seeded")) for _ in range(2)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(titles()) == 3
    assert sorted(me.api.list_repo_files("hfflow/seeded")) == [".gitattributes", "README.md", "sub/model.safetensors"]
