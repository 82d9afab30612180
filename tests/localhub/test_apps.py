"""Spaces run: what the official client asks for, and what a browser gets."""
import json
import re
import socket
import threading
import time

import httpx
import pytest
from hub_process import TOKENS, Server
from huggingface_hub import CommitOperationAdd, HfApi, Volume
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError

APP = """
import http.server, json, os, time
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/crash': print('last words', flush=True); os._exit(3)
        self.send_response(200)
        self.send_header('Set-Cookie', 'hub=evil; Domain=localhost'); self.send_header('Set-Cookie', 'mine=1; Path=/')
        self.send_header('Clear-Site-Data', '"*"'); self.end_headers()
        if self.path == '/slow':
            for i in range(3): self.wfile.write(b'data: %d\\n\\n' % i); self.wfile.flush(); time.sleep(.4)
        elif self.path == '/env': self.wfile.write(json.dumps(dict(os.environ)).encode())
        else: self.wfile.write(json.dumps(dict(path=self.path, got={k.lower(): v for k, v in self.headers.items()})).encode())
    def do_POST(self):
        n, total = int(self.headers['Content-Length']), 0
        while total < n: total += len(self.rfile.read(min(65536, n - total)))
        self.send_response(201); self.end_headers(); self.wfile.write(str(total).encode())
print('hello', os.environ.get('GREETING'), flush=True)
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), App).serve_forever()
"""
DOCKER = "FROM python:3.11\nENV MODE=fast HOME=/home/user\nWORKDIR $HOME/app\nRUN apt-get update\nCOPY . .\nCMD [\"python\", \"app.py\"]\n"
CARD = "---\ntitle: An echo of what was asked\nsdk: docker\ntags: [echo, template]\nmodels: [you/none]\n---\n"


@pytest.fixture(scope="module")
def spaces(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("spaces"), "--spaces")
    yield s
    s.stop()


@pytest.fixture(scope="module")
def you(spaces, apis):
    return HfApi(spaces.url, token=TOKENS["you"])


@pytest.fixture(scope="module")
def ann(spaces, apis):
    return HfApi(spaces.url, token=TOKENS["ann"])


def bearer(who):
    return {"Authorization": f"Bearer {TOKENS[who]}"}


def push(api, repo, **files):
    files = {k.replace("__", "."): v for k, v in files.items()}
    api.create_commit(repo, [CommitOperationAdd(p, t.encode()) for p, t in files.items()], commit_message="files", repo_type="space")


def make(api, name, sdk="docker", wait=True, **files):
    repo = f"you/{name}"
    api.create_repo(repo, repo_type="space", space_sdk=sdk)
    push(api, repo, **files)
    return api.wait_for_space(repo, timeout=60, poll_interval=0.2) if wait else None


@pytest.fixture(scope="module")
def echo(you):
    "A running Space, and a way to ask it."
    runtime = make(you, "echo", app__py=APP, Dockerfile=DOCKER, README__md=CARD)
    assert runtime.stage == "RUNNING", runtime.raw
    with httpx.Client(base_url=you.space_info("you/echo").host, trust_env=False, timeout=60) as c:
        yield c


def test_a_commit_becomes_an_app(you, echo):
    info = you.space_info("you/echo", expand=["runtime", "host", "subdomain"])
    assert (info.subdomain, info.runtime.stage, info.runtime.hardware) == ("you-echo", "RUNNING", "cpu-basic")
    env = echo.get("env").json()
    assert (env["SPACE_ID"], env["MODE"], env["HF_ENDPOINT"]) == ("you/echo", "fast", you.endpoint) and env["HOME"] != "/home/user"
    log = list(you.fetch_space_logs("you/echo", build=True))
    assert any("not run: RUN apt-get update" in line for line in log) and all(line.endswith("\n") for line in log)


def test_requests_go_through_whole(echo):
    got = echo.get("a%2Fb//c?x=%20y", headers={"X-Mine": "1", "Cookie": "hub=secret; other=2"}).json()
    assert got["path"] == "/a%2Fb//c?x=%20y" and (got["got"]["x-mine"], got["got"]["cookie"]) == ("1", "other=2")
    assert echo.post("up", content=b"x" * 5_000_000).text == "5000000"
    with echo.stream("GET", "slow") as r:
        t = [time.monotonic() for _ in r.iter_raw()]
    assert t[-1] - t[0] > 0.5, "the answer came in one piece"


def test_an_app_gets_no_token_and_sets_no_cookie_of_the_hub(echo):
    sent = bearer("you") | {"X-HF-Authorization": f"Bearer {TOKENS['you']}", "Cookie": "hub_space=x"}
    r = echo.get("", headers=sent)
    assert TOKENS["you"] not in r.text and "cookie" not in r.json()["got"]
    assert r.headers.get_list("set-cookie") == ["mine=1; Path=/spaces/you/echo/app/"] and "clear-site-data" not in r.headers
    assert r.headers["content-security-policy"].startswith("sandbox") and "allow-same-origin" not in r.headers["content-security-policy"]
    own = echo.get("", headers={"Authorization": "Bearer of-the-app"}).json()["got"]
    assert own["authorization"] == "Bearer of-the-app"
    assert echo.get("", headers={"Authorization": "Bearer hf_wrong"}).status_code == 401


def test_a_space_has_a_host_of_its_own(spaces, echo):
    host = {"Host": f"you-echo.localhost:{spaces.url.rpartition(':')[2]}"}
    r = httpx.get(f"{spaces.url}/api/models", headers=host)
    assert r.json()["path"] == "/api/models" and r.json()["got"]["host"] == host["Host"] and "content-security-policy" not in r.headers
    page = echo.get("x?y=1", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (307, f"http://{host['Host']}/")
    assert httpx.get(f"{spaces.url}/api/models", headers={"Host": "other-one.localhost"}).json() == []


def test_private_spaces_open_to_members_and_passes(spaces, you, echo):
    you.update_repo_settings("you/echo", repo_type="space", private=True)
    try:
        codes = [echo.get("", headers=h).status_code for h in ({}, bearer("ann"), bearer("you"), {"X-HF-Authorization": bearer("you")["Authorization"]})]
        assert codes == [401, 404, 200, 200]
        to = httpx.URL(echo.get("", headers=bearer("you") | {"Accept": "text/html"}).headers["location"])
        host = {"Host": f"{to.host}:{to.port}"}
        r = httpx.get(to.copy_with(host="127.0.0.1"), headers=host)
        assert (r.status_code, r.headers["location"]) == (303, "/") and {"HttpOnly", "Secure", "SameSite=None", "Partitioned"} <= set(r.headers["set-cookie"].split("; "))
        cookie = r.headers["set-cookie"].split(";")[0]
        assert httpx.get(spaces.url, headers=host | {"Cookie": cookie}).status_code == 200
        for bad in (cookie[:-1], cookie.replace("you", "ann"), re.sub(r":\d+:", ":9999999999:", cookie), "hub_space=::", "hub_space=%ff"):
            assert httpx.get(spaces.url, headers=host | {"Cookie": bad}).status_code == 401, bad
    finally:
        you.update_repo_settings("you/echo", repo_type="space", private=False)


def test_variables_and_secrets_reach_the_app(you, ann, echo):
    assert you.get_space_variables("you/echo") == {} and you.get_space_secrets("you/echo") == {}
    you.add_space_variable("you/echo", "GREETING", "Hi", description="first")
    found = you.add_space_variable("you/echo", "GREETING", "Hello")
    assert (found["GREETING"].value, found["GREETING"].description) == ("Hello", "first")
    you.add_space_secret("you/echo", "KEY", "s3cret")
    with pytest.raises(HfHubHTTPError, match="variable of this Space already"):
        you.add_space_secret("you/echo", "GREETING", "x")
    assert you.wait_for_space("you/echo", timeout=60, poll_interval=0.2).stage == "RUNNING"
    env = echo.get("env").json()
    assert (env["GREETING"], env["KEY"]) == ("Hello", "s3cret")
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.get_space_secrets("you/echo")
    secrets = you.get_space_secrets("you/echo")
    assert list(secrets) == ["KEY"] and "s3cret" not in repr(secrets) and secrets["KEY"].updated_at
    you.delete_space_secret("you/echo", "missing")
    you.delete_space_secret("you/echo", "KEY")
    assert you.delete_space_variable("you/echo", "GREETING") == {}
    assert you.wait_for_space("you/echo", timeout=60, poll_interval=0.2).stage == "RUNNING"
    assert "KEY" not in echo.get("env").json()


def test_a_new_commit_replaces_the_old_app_without_a_gap(you, echo):
    assert you.wait_for_space("you/echo", timeout=60).stage == "RUNNING"
    push(you, "you/echo", app__py=APP.replace("dict(path=", "dict(new=True, path="))
    stages, answers, end = set(), [], time.monotonic() + 120
    while not answers or "new" not in answers[-1]:
        stages.add((runtime := you.get_space_runtime("you/echo")).stage)
        answers.append(echo.get("").json())
        assert time.monotonic() < end, (runtime.raw, answers[-1])
    assert "RUNNING_BUILDING" in stages and stages <= {"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"}


def test_crash_pause_restart(you, ann, echo):
    assert you.wait_for_space("you/echo", timeout=60).stage == "RUNNING"
    assert echo.get("crash").status_code == 502
    while (r := you.get_space_runtime("you/echo")).stage == "RUNNING":
        time.sleep(0.05)
    assert (r.stage, r.raw["errorMessage"][:12]) == ("RUNTIME_ERROR", "Exit code: 3")
    assert list(you.fetch_space_logs("you/echo"))[-1] == "last words\n"
    assert echo.get("", headers={"Sec-Fetch-Mode": "cors"}).status_code == 503
    assert you.pause_space("you/echo").stage == "PAUSED" and you.get_space_runtime("you/echo").stage == "PAUSED"
    for call in (ann.restart_space, ann.pause_space):
        with pytest.raises(HfHubHTTPError, match="403"):
            call("you/echo")
    with pytest.raises(HfHubHTTPError, match="403"):
        list(ann.fetch_space_logs("you/echo"))
    with pytest.raises(RepositoryNotFoundError):
        ann.restart_space("you/absent")
    you.restart_space("you/echo", factory_reboot=True)
    assert you.wait_for_space("you/echo", timeout=60, poll_interval=0.2).stage == "RUNNING"


def test_logs_are_followed_as_they_grow(you, echo):
    lines, end = [], threading.Event()

    def follow():
        for line in you.fetch_space_logs("you/echo", follow=True):
            lines.append(line)
        end.set()

    threading.Thread(target=follow, daemon=True).start()
    while not any("GET" in line for line in lines):
        echo.get("")
        time.sleep(0.1)
    you.pause_space("you/echo")
    assert end.wait(20)
    you.restart_space("you/echo")
    assert you.wait_for_space("you/echo", timeout=60, poll_interval=0.2).stage == "RUNNING"


def test_settings(you, echo):
    hw = you.list_spaces_hardware()
    assert [h.name for h in hw] == ["cpu-basic"] and hw[0].unit_cost_usd == 0
    r = you.request_space_hardware("you/echo", "t4-medium", sleep_time=7200)
    assert (r.requested_hardware, r.hardware, r.sleep_time) == ("t4-medium", "cpu-basic", 7200)
    assert you.set_space_sleep_time("you/echo", -1).sleep_time == -1
    with pytest.raises(HfHubHTTPError, match="501"):
        you.enable_space_dev_mode("you/echo")
    assert you.disable_space_dev_mode("you/echo").dev_mode is False
    with pytest.raises(BadRequestError, match="no volumes"):
        you.delete_space_volumes("you/echo")
    you.create_repo("you/weights", exist_ok=True)
    you.set_space_volumes("you/echo", [Volume(type="model", source="you/weights", mount_path="/m")])
    assert [v.source for v in you.space_info("you/echo").runtime.volumes] == ["you/weights"]
    with pytest.raises(HfHubHTTPError, match="404"):
        you.set_space_volumes("you/echo", [Volume(type="model", source="you/absent", mount_path="/m")])
    you.delete_space_volumes("you/echo")
    assert you.get_zero_gpu_quota().remaining == 0


def test_search_templates_and_copies(you, ann, echo):
    found = list(ann.search_spaces("echo asked"))
    assert [(s.id, s.title, s.runtime.stage, s.semantic_relevancy_score) for s in found] == [("you/echo", "An echo of what was asked", "RUNNING", 1)]
    assert list(ann.search_spaces("echo", sdk="gradio")) == []
    assert [t.repo_id for t in ann.list_space_templates()] == ["you/echo"]
    ann.create_repo("ann/copy", repo_type="space", space_template="echo", space_secrets=[dict(key="K", value="v")], space_hardware="cpu-basic")
    you.add_space_variable("you/echo", "WHERE", "here")
    ann.duplicate_repo("you/echo", "ann/twin", repo_type="space", space_variables=[dict(key="MORE", value="1")])
    assert list(ann.get_space_secrets("ann/copy")) == ["K"] and set(ann.get_space_variables("ann/twin")) == {"WHERE", "MORE"}
    for name in ("ann/copy", "ann/twin"):
        assert ann.space_info(name).sdk == "docker" and ann.file_exists(name, "app.py", repo_type="space")
        ann.delete_repo(name, repo_type="space")


def test_static_spaces_are_files(spaces, you):
    html = "<!doctype html><script src=a.js></script>"
    make(you, "page", "static", wait=False, index__html=html, a__js="1", sub="x" * 100)
    assert you.get_space_runtime("you/page").stage == "RUNNING"
    for call in (you.pause_space, you.restart_space, you.enable_space_dev_mode):
        with pytest.raises(BadRequestError):
            call("you/page")
    host = {"Host": f"you-page.localhost:{spaces.url.rpartition(':')[2]}"}
    get = lambda path, **h: httpx.get(spaces.url + path, headers=host | h)
    r = get("/")
    assert (r.text, r.headers["content-type"]) == (html, "text/html; charset=utf-8") and "javascript" in get("/a.js").headers["content-type"]
    assert get("/", **{"If-None-Match": r.headers["etag"]}).status_code == 304
    assert (get("/sub", Range="bytes=90-").status_code, get("/sub", Range="bytes=90-").text) == (206, "x" * 10)
    assert get("/absent").status_code == 404 and get("/%2e%2e/secret").status_code == 404
    below = httpx.get(f"{spaces.url}/spaces/you/page/app/", headers={"Sec-Fetch-Mode": "cors"})
    assert below.text == html and below.headers["content-security-policy"].startswith("sandbox allow-scripts")
    push(you, "you/page", README__md="---\nsdk: static\napp_file: dist/index.html\n---\n")
    assert you.get_space_runtime("you/page").stage == "NO_APP_FILE"


def test_a_page_leads_to_the_model_and_to_its_data(spaces, you):
    you.create_repo("you/old-weights")
    you.upload_file(path_or_fileobj=b"---\ndatasets: [you/rows]\n---\n", path_in_repo="README.md", repo_id="you/old-weights")
    make(you, "line", "static", wait=False, README__md="---\nsdk: static\nmodels: [you/old-weights]\n---\n", index__html="x")
    page = httpx.get(f"{spaces.url}/spaces/you/line").text
    assert 'href="/you/old-weights"' in page and "you/rows" in page.split('class="links under"')[1]


def test_a_build_that_fails_says_why(you):
    r = make(you, "bad", "gradio", app__py="print(1)", requirements__txt="--no-index\nno-such-package-of-all==1\n")
    assert r.stage == "BUILD_ERROR" and "pip ended with exit code" in r.raw["errorMessage"]
    assert any("no-such-package-of-all" in line for line in you.fetch_space_logs("you/bad", build=True))
    push(you, "you/bad", requirements__txt="starlette\n", app__py="raise SystemExit('not today')")
    assert you.wait_for_space("you/bad", timeout=60, poll_interval=0.2).stage == "RUNTIME_ERROR"
    assert "not today\n" in list(you.fetch_space_logs("you/bad"))
    you.delete_file("app.py", "you/bad", repo_type="space")
    assert you.get_space_runtime("you/bad").stage == "NO_APP_FILE"
    you.delete_repo("you/bad", repo_type="space")


@pytest.mark.parametrize("method,path,body,status", [
    ("POST", "variables", {"key": "1x", "value": "v"}, 400), ("POST", "variables", {"key": "X", "value": 3}, 400), ("POST", "variables", {"key": "X"}, 400),
    ("POST", "secrets", {"key": "A=B", "value": "v"}, 400), ("POST", "secrets", {"key": "X", "value": "\ud800"}, 400), ("DELETE", "secrets", {}, 400),
    ("POST", "hardware", {"flavor": ["x"]}, 400), ("POST", "hardware", {"flavor": "cpu-basic", "sleepTimeSeconds": 1e400}, 400),
    ("POST", "sleeptime", {"seconds": True}, 400), ("POST", "sleeptime", {"seconds": -5}, 400), ("PUT", "volumes", {"volumes": {}}, 400),
    ("PUT", "volumes", {"volumes": [{"type": "model", "source": "a/b", "mountPath": "x"}]}, 400), ("GET", "logs/other", None, 404)])
def test_bad_input(you, echo, method, path, body, status):
    url = f"{you.endpoint}/api/spaces/you/echo/{path}"
    r = httpx.request(method, url, content=json.dumps(body), headers=bearer("you"))
    assert r.status_code == status and r.json()["error"]


@pytest.mark.parametrize("body", [{"secrets": "x"}, {"variables": [3]}, {"hardware": 7}, {"volumes": [{}]}, {"template": "you/none"}, {"sleepTimeSeconds": "soon"}])
def test_bad_creation_makes_nothing(you, body):
    r = httpx.post(f"{you.endpoint}/api/repos/create", json={"name": "never", "type": "space", "sdk": "gradio"} | body, headers=bearer("you"))
    assert r.status_code in (400, 404) and not you.repo_exists("you/never", repo_type="space")


def test_nothing_runs_without_the_switch(api, http):
    make(api, "idle", "gradio", wait=False, app__py="open('ran','w')")
    assert api.get_space_runtime("you/idle").stage == "STOPPED"
    with pytest.raises(HfHubHTTPError, match="403.*without --spaces|without --spaces"):
        api.restart_space("you/idle")
    assert http.get("/spaces/you/idle/app/").status_code == 503
    assert "started without --spaces" in http.get("/spaces/you/idle/app/", headers={"Accept": "text/html", "Host": "you-idle.localhost"}).text
    push(api, "you/idle", README__md="---\nsdk: docker\n---\n", Dockerfile="FROM x\n")
    assert api.get_space_runtime("you/idle").stage == "CONFIG_ERROR"
    assert api.pause_space("you/idle").stage == "PAUSED" and "PAUSED" in http.get("/spaces/you/idle").text
    with pytest.raises(HfHubHTTPError, match="without --spaces"):
        api.restart_space("you/idle")


def test_a_hub_that_runs_what_it_is_asked_for(tmp_path, apis):
    s = Server(tmp_path, "--asked")
    try:
        api = HfApi(s.url, token=TOKENS["you"])
        make(api, "quiet", wait=False, app__py=APP, Dockerfile=DOCKER)
        time.sleep(1.5)
        assert api.get_space_runtime("you/quiet").stage == "STOPPED"
        host = api.space_info("you/quiet").host
        assert httpx.get(host).status_code == 503 and api.get_space_runtime("you/quiet").stage == "STOPPED", "a visit is no request"
        with pytest.raises(HfHubHTTPError, match="403"): HfApi(s.url, token=TOKENS["ann"]).restart_space("you/quiet")
        api.restart_space("you/quiet")
        first = api.wait_for_space("you/quiet", timeout=60, poll_interval=0.2)
        assert first.stage == "RUNNING" and httpx.get(host).json()["path"] == "/"
        push(api, "you/quiet", app__py=APP.replace("dict(path=", "dict(new=True, path="))    # it follows its commits now
        end = time.monotonic() + 60
        while "new" not in httpx.get(host, timeout=60).json(): assert time.monotonic() < end
        api.set_space_sleep_time("you/quiet", 1)
        while api.get_space_runtime("you/quiet").stage != "SLEEPING": time.sleep(0.1)
        assert "new" in httpx.get(host, timeout=60).json(), "and a visit wakes it"
        assert api.pause_space("you/quiet").stage == "PAUSED" and httpx.get(host).status_code == 503
        assert api.wait_for_job(api.run_job(image="x", command=["echo", "hi"]).id, poll_interval=0.1).status.stage == "COMPLETED"
    finally:
        s.stop()


def test_a_new_hub_wakes_spaces_when_somebody_comes(tmp_path, apis):
    s = Server(tmp_path, "--spaces")
    try:
        api = HfApi(s.url, token=TOKENS["you"])
        assert make(api, "sleeper", app__py=APP, Dockerfile=DOCKER).stage == "RUNNING"
        s.kill()
        s = Server(tmp_path, "--spaces")
        api = HfApi(s.url, token=TOKENS["you"])
        assert api.get_space_runtime("you/sleeper").stage == "SLEEPING"
        assert any("hello" in line for line in api.fetch_space_logs("you/sleeper"))  # the log outlives the Hub
        assert httpx.get(api.space_info("you/sleeper").host, timeout=60).json()["path"] == "/"
        api.set_space_sleep_time("you/sleeper", 1)
        while api.get_space_runtime("you/sleeper").stage != "SLEEPING":
            time.sleep(0.1)
    finally:
        s.stop()


ECHO_WS = """
import asyncio, os
from websockets.asyncio.server import serve
async def echo(ws):
    async for m in ws: await ws.send(m + (b'!' if isinstance(m, bytes) else '!'))
async def main():
    async with serve(echo, '0.0.0.0'.replace('0.0.0.0', '127.0.0.1'), 7861): await asyncio.get_running_loop().create_future()
asyncio.run(main())
"""


def test_websockets_and_a_port_of_its_own(spaces, you):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    card = "---\nsdk: docker\napp_port: 7861\n---\n"
    assert make(you, "talk", app__py=ECHO_WS, Dockerfile=DOCKER, README__md=card).stage == "RUNNING"
    port = int(spaces.url.rpartition(":")[2])
    def open_ws(host):
        return connect(f"ws://{host}:{port}/", sock=socket.create_connection(("127.0.0.1", port)))

    with open_ws("you-talk.localhost") as ws:
        ws.send("text"), ws.send(b"bytes")
        assert (ws.recv(timeout=10), ws.recv(timeout=10)) == ("text!", b"bytes!")
    you.update_repo_settings("you/talk", repo_type="space", private=True)
    for host in ("you-talk.localhost", "evil.example", "127.0.0.1"):
        with pytest.raises(InvalidStatus):
            open_ws(host)
    you.delete_repo("you/talk", repo_type="space")


def test_the_page_of_a_space(spaces, you, echo):
    with httpx.Client(base_url=spaces.url, headers={"Accept": "text/html"}) as c:
        assert c.get("/spaces/you/echo/manage").status_code == 403 and "Manage" not in c.get("/spaces/you/echo").text
        c.post("/login", data={"token": TOKENS["you"]})
        r = c.get("/spaces/you/echo")
        assert f'<iframe src="http://you-echo.localhost:{c.base_url.port}/"' in r.text and f"frame-src http://you-echo.localhost:{c.base_url.port}" in r.headers["content-security-policy"]
        page = c.get("/spaces/you/echo/manage").text
        word = re.search('name="csrf" value="([0-9a-f]+)"', page)[1]
        assert "Build of commit" in page and "Restart" in page
        send = lambda headers={}, **d: c.post("/spaces/you/echo/manage", data=d, headers=headers)
        assert send(csrf="0" * 64, action="pause").status_code == 403
        assert send({"Origin": "http://you-echo.localhost"}, csrf=word, action="pause").status_code == 403
        assert send({"Sec-Fetch-Site": "cross-site"}, csrf=word, action="pause").status_code == 403
        assert send(csrf=word, action="set", kind="variables", key="a b", value="1").status_code == 400
        assert you.get_space_runtime("you/echo").stage == "RUNNING"
        assert send(csrf=word, action="set", kind="secrets", key="PAGE", value="hidden-value").status_code == 303
        page = c.get("/spaces/you/echo/manage").text
        assert "PAGE" in page and "hidden-value" not in page and list(you.get_space_secrets("you/echo")) == ["PAGE"]
        assert send(csrf=word, action="pause").status_code == 303 and you.get_space_runtime("you/echo").stage == "PAUSED"


def test_gradio_answers_its_own_client(spaces, you, run):
    app = "import gradio as gr\ngr.Interface(lambda x: x[::-1], 'text', 'text', api_name='turn').launch()\n"
    you.create_repo("you/turn", repo_type="space", space_sdk="gradio", private=True)
    push(you, "you/turn", app__py=app, README__md="---\nsdk: gradio\n---\n", requirements__txt="gradio\n")
    r = you.wait_for_space("you/turn", timeout=120, poll_interval=0.3)
    assert r.stage == "RUNNING", list(you.fetch_space_logs("you/turn"))
    out = run("import os; from gradio_client import Client; c = Client('you/turn', token=os.environ['HF_TOKEN'], verbose=False, analytics_enabled=False);"
              "print(c.predict('stressed', api_name='/turn')); c.close(); os._exit(0) if not print(end='', flush=True) else 0", HF_ENDPOINT=spaces.url)
    assert out.strip() == "desserts"


def test_a_turn_that_is_over_takes_no_later_one_with_it(tmp_path):
    from hfflow.localhub.apps import App
    from hfflow.localhub.wire import Hub
    app = App(Hub(tmp_path), "key")
    for turn in (3, 4, 5): (app.folder / f"run/{turn}/app").mkdir(parents=True)
    app.turn = 4
    app._clear()
    assert sorted(d.name for d in app.folder.glob("run/*")) == ["4", "5"], "5 began while 3 was cleared away"
