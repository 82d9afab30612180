"""Webhooks: what is announced, in which order, to whom, and what survives a crash."""
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, WebhookPayload, WebhookWatchedItem
from huggingface_hub.errors import HfHubHTTPError
from hub_process import TOKENS, Server

from hfflow.localhub import webhooks
from hfflow.localhub.server import running


class Receiver:
    "Keeps what it is sent; `answer` may change what it says, or how long it thinks."

    def __init__(self):
        self.got, self.answer = [], lambda n: 200
        me = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                me.got.append((dict(self.headers), WebhookPayload.model_validate_json(body), json.loads(body)))
                status = me.answer(len(me.got))
                try:
                    self.send_response(status)
                    if 300 <= status < 400: self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/other")
                    self.end_headers()
                except OSError: pass  # the caller has gone

            def log_message(self, *args): pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def wait(self, n, seconds=30):
        end = time.time() + seconds
        while len(self.got) < n and time.time() < end: time.sleep(0.02)
        time.sleep(0.05)
        assert len(self.got) == n, [(p.event.action, p.event.scope) for _, p, _ in self.got]
        return [f"{p.event.action} {p.event.scope}" for _, p, _ in self.got]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(world):
    "Somebody whom webhooks call; these go with it, or the next to take its port would be called too."
    r = Receiver()
    yield r
    for api in world[:2]:
        for w in api.list_webhooks(): api.delete_webhook(w.id)
    r.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    start = webhooks.Deliverer.__init__.__defaults__
    webhooks.Deliverer.__init__.__defaults__ = ((0.05, 0.1), 2.5, 4)
    with running(tmp_path_factory.mktemp("hub"), ["you:tok-you", "ann:tok-ann"], ["hfflow:you"]) as (url, hub):
        yield HfApi(url, token="tok-you"), HfApi(url, token="tok-ann"), hub
    webhooks.Deliverer.__init__.__defaults__ = start


def watch(api, receiver, name, type="model", **kw):
    return api.create_webhook(url=receiver.url, watched=[{"type": type, "name": name}], **kw)


def test_the_clients_calls(world, receiver):
    you, ann, _ = world
    items = [WebhookWatchedItem(type="user", name="julien-c"), {"type": "org", "name": "HuggingFaceH4"}]
    w = you.create_webhook(url=receiver.url, watched=items, domains=["repo"], secret="s3cret")
    assert (w.url, w.domains, w.secret, w.disabled, [(i.type, i.name) for i in w.watched]) == (receiver.url, ["repo"], "s3cret", False, [("user", "julien-c"), ("org", "HuggingFaceH4")])
    assert you.get_webhook(w.id) == w and w.id in [x.id for x in you.list_webhooks()] and w.id not in [x.id for x in ann.list_webhooks()]
    assert you.update_webhook(w.id, url=receiver.url + "2").watched == w.watched
    assert you.create_webhook(url=receiver.url, watched=items).domains == ["repo", "discussion"]
    assert you.disable_webhook(w.id).disabled and not you.enable_webhook(w.id).disabled
    for call in (ann.get_webhook, ann.disable_webhook, ann.delete_webhook):
        with pytest.raises(HfHubHTTPError, match="404"): call(w.id)
    you.delete_webhook(w.id)
    with pytest.raises(HfHubHTTPError, match="404"): you.get_webhook(w.id)


@pytest.mark.parametrize("change", [dict(url=None), dict(url=3), dict(url="gopher://x"), dict(url="http://[::1"), dict(url="http://h/\n"), dict(url="http://ü/"), dict(watched=[]), dict(watched="x"),
                                    dict(watched=[3]), dict(watched=[{"type": "car", "name": "x"}]), dict(watched=[{"type": "user", "name": "a b"}]), dict(watched=[{"type": [], "name": "x"}]),
                                    dict(domains=["cars"]), dict(domains=[[]]), dict(domains="repo"), dict(secret="a\r\nX: y"), dict(secret="ü"), dict(secret=[1]), dict(watched=[{"type": "user", "name": "\ud800"}])])
def test_bad_input(http, change):
    body = dict(url="http://127.0.0.1:9/", watched=[{"type": "user", "name": "you"}], domains=["repo"]) | change
    r = http.post("/api/settings/webhooks", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert r.status_code == 400 and len(r.json()["error"]) > 10


def test_what_is_announced(world, receiver):
    you, ann, hub = world
    w = watch(you, receiver, "hfflow", "org", secret="s")
    repo = "hfflow/told"
    you.create_repo(repo)
    first = you.list_repo_commits(repo)[0].commit_id
    you.create_commit(repo, [CommitOperationAdd("a.txt", b"1"), CommitOperationAdd("b.txt", b"2")], commit_message="Two files")
    you.create_branch(repo, branch="b")
    you.delete_branch(repo, branch="b")
    you.create_tag(repo, tag="v1", tag_message="annotated")
    you.super_squash_history(repo)
    you.update_repo_settings(repo, private=True)
    you.update_repo_settings(repo, private=True)  # nothing new
    you.update_repo_settings(repo, private=False)
    you.update_repo_settings(repo, gated="auto")
    you.move_repo(repo, "hfflow/moved")
    you.delete_repo("hfflow/moved")
    assert receiver.wait(11) == ["create repo"] + ["update repo.content"] * 5 + ["update repo.config"] * 3 + ["move repo", "delete repo"]
    headers, _, raw = receiver.got[1]
    assert headers["X-Webhook-Secret"] == "s" and headers["Content-Type"] == "application/json"
    assert raw["updatedRefs"] == [dict(ref="refs/heads/main", oldSha=first, newSha=raw["repo"]["headSha"])]
    assert raw["repo"]["url"] == dict(web=f"{you.endpoint}/{repo}", api=f"{you.endpoint}/api/models/{repo}") and raw["webhook"] == dict(id=w.id, version=3)
    refs = [[(u.ref, u.oldSha is None, u.newSha is None) for u in p.updatedRefs] for _, p, _ in receiver.got[2:6]]
    assert refs == [[("refs/heads/b", True, False)], [("refs/heads/b", False, True)], [("refs/tags/v1", True, False)], [("refs/heads/main", False, False)]]
    assert [r["updatedConfig"] for _, _, r in receiver.got[6:9]] == [{"private": True}, {"private": False}, {}]
    assert (receiver.got[9][1].repo.name, receiver.got[9][1].movedTo.name, receiver.got[10][1].repo.name) == (repo, "hfflow/moved", "hfflow/moved")


def test_discussions_and_pull_requests(world, receiver):
    you, ann, hub = world
    you.create_repo("you/talk", exist_ok=True)
    watch(you, receiver, "you/talk")
    d = ann.create_discussion("you/talk", "A question", description="First words")
    c = ann.comment_discussion("you/talk", d.num, "More words")
    ann.edit_discussion_comment("you/talk", d.num, c.id, "Other words")
    ann.hide_discussion_comment("you/talk", d.num, c.id)
    ann.rename_discussion("you/talk", d.num, "A better question")
    you.change_discussion_status("you/talk", d.num, "closed")
    assert receiver.wait(6) == ["create discussion", "create discussion.comment", "update discussion.comment", "update discussion.comment", "update discussion", "update discussion"]
    texts = [p.comment and p.comment.content for _, p, _ in receiver.got]
    assert texts == ["First words", "More words", "Other words", None, None, None] and receiver.got[3][1].comment.hidden
    assert [p.discussion.status for _, p, _ in receiver.got[-2:]] == ["open", "closed"] and receiver.got[4][1].discussion.title == "A better question"
    assert "headSha" not in receiver.got[0][2]["repo"] and receiver.got[0][1].discussion.url.web.endswith(f"/you/talk/discussions/{d.num}")
    receiver.got.clear()
    pr = ann.create_commit("you/talk", [CommitOperationAdd("x", b"1")], commit_message="Change x", create_pr=True).pr_num
    you.merge_pull_request("you/talk", pr)
    assert sorted(receiver.wait(4)) == ["create discussion", "update discussion", "update repo.content", "update repo.content"]
    merged = next(p for _, p, _ in receiver.got if p.event.action == "update" and p.event.scope == "discussion")
    assert merged.discussion.isPullRequest and merged.discussion.status == "merged" and merged.discussion.changes.mergeCommitId == you.list_repo_commits("you/talk")[0].commit_id
    assert {u.ref for _, p, _ in receiver.got for u in p.updatedRefs or []} == {f"refs/pr/{pr}", "refs/heads/main"}


def test_a_pull_request_that_failed_was_never_there(world, receiver):
    you, ann, _ = world
    you.create_repo("you/failing", exist_ok=True)
    watch(you, receiver, "you/failing")
    with pytest.raises(HfHubHTTPError): ann.create_commit("you/failing", [CommitOperationAdd("x", b"1")], commit_message="Change x", create_pr=True, parent_commit="0" * 40)
    you.create_tag("you/failing", tag="v1")
    assert receiver.wait(1) == ["update repo.content"]


def test_git_push(world, receiver, tmp_path):
    you, _, _ = world
    you.create_repo("you/pushed")
    watch(you, receiver, "you/pushed")
    env = dict(PATH="/usr/bin:/bin:/usr/local/bin", HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0")
    git = lambda *a: subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *a], cwd=tmp_path / "c" if (tmp_path / "c").exists() else tmp_path, env=env, check=True, capture_output=True)
    git("clone", you.endpoint.replace("://", "://you:tok-you@") + "/you/pushed", "c")
    (tmp_path / "c/new.txt").write_text("new")
    git("add", ".")
    git("commit", "-qm", "New")
    git("push", "-q", "origin", "HEAD:main", "HEAD:other")
    receiver.wait(1)
    assert [(u.ref, u.oldSha is None) for u in receiver.got[0][1].updatedRefs] == [("refs/heads/main", False), ("refs/heads/other", True)]


def test_only_who_may_see_it_hears_of_it(world, receiver):
    you, ann, _ = world
    you.create_repo("you/hidden", private=True)
    watch(ann, receiver, "you/hidden")
    watch(ann, receiver, "you", "user")
    you.create_tag("you/hidden", tag="v1")
    you.create_discussion("you/hidden", "A title")
    watch(you, receiver, "you/hidden", domains=["discussion"])
    you.create_tag("you/hidden", tag="v2")
    you.comment_discussion("you/hidden", 1, "x")
    assert receiver.wait(1) == ["create discussion.comment"]
    you.update_repo_settings("you/hidden", private=False)
    assert receiver.wait(3)[1:] == ["update repo.config"] * 2


def test_order_retries_and_the_end_of_patience(world, receiver):
    you, ann, hub = world
    you.create_repo("you/slow", exist_ok=True)
    w = watch(you, receiver, "you/slow", domains=["discussion"])
    sent = lambda: httpx.get(f"{you.endpoint}/api/settings/webhooks/{w.id}/deliveries", headers={"Authorization": "Bearer tok-you"}, trust_env=False).json()
    d = you.create_discussion("you/slow", "A title")
    receiver.wait(1)
    receiver.got.clear()
    receiver.answer = lambda n: 500 if n <= 2 else 200
    for i in range(4): you.comment_discussion("you/slow", d.num, f"{i}")
    receiver.wait(6)
    assert [p.comment.content for _, p, _ in receiver.got] == ["0", "0", "0", "1", "2", "3"]
    assert [(x["status"], x["tries"]) for x in sent()[:4]] == [("delivered", 1)] * 3 + [("delivered", 3)]
    receiver.got.clear()
    receiver.answer = lambda n: time.sleep(3) or 200 if n == 1 else 500
    you.comment_discussion("you/slow", d.num, "never")
    receiver.wait(3)
    assert (sent()[0]["status"], sent()[0]["tries"], sent()[0]["answer"]) == ("failed", 3, "500")
    for answer in (302, 404):
        receiver.got.clear()
        receiver.answer = lambda n: answer
        you.comment_discussion("you/slow", d.num, "gone")
        receiver.wait(1)
        time.sleep(0.2)
        assert len(receiver.got) == 1 and sent()[0]["answer"] == str(answer) and sent()[0]["status"] == "failed"
    receiver.answer = lambda n: 200
    r = httpx.post(f"{you.endpoint}/api/settings/webhooks/{w.id}/deliveries/{sent()[0]['id']}/replay", headers={"Authorization": "Bearer tok-you"}, trust_env=False)
    receiver.wait(2)
    assert r.status_code == 200 and receiver.got[1][2] == receiver.got[0][2]
    r = httpx.post(f"{you.endpoint}/api/settings/webhooks/{w.id}/deliveries/{sent()[0]['id']}/replay", headers={"Authorization": "Bearer tok-ann"}, trust_env=False)
    assert r.status_code == 404


def test_one_that_hangs_delays_nobody_else(world, receiver):
    you, _, _ = world
    stuck = Receiver()
    stuck.answer = lambda n: time.sleep(0.9) or 200
    you.create_repo("you/two", exist_ok=True)
    watch(you, stuck, "you/two")
    watch(you, receiver, "you/two")
    start = time.time()
    for i in range(3): you.create_tag("you/two", tag=f"t{i}")
    receiver.wait(3)
    assert time.time() - start < 2 and len(stuck.got) < 3
    stuck.close()


def test_a_hub_on_a_network_calls_nothing_on_its_own_machine(world, receiver, monkeypatch):
    you, _, hub = world
    monkeypatch.setattr(hub, "local", False)
    you.create_repo("you/network", exist_ok=True)
    w = watch(you, receiver, "you/network")
    you.create_tag("you/network", tag="v1")
    end = time.time() + 5
    while webhooks.deliveries_of(hub, w.id)[0]["status"] == "waiting" and time.time() < end: time.sleep(0.05)
    last = webhooks.deliveries_of(hub, w.id)[0]
    assert (last["status"], last["tries"]) == ("failed", 3) and "machine" in last["answer"] and not receiver.got


def test_a_day_has_so_many_calls(world, receiver, monkeypatch):
    you, _, hub = world
    monkeypatch.setattr(webhooks, "DAILY", 2)
    you.create_repo("you/often", exist_ok=True)
    watch(you, receiver, "you/often")
    for i in range(4): you.create_tag("you/often", tag=f"t{i}")
    receiver.wait(2)


def test_a_drip_is_cut_off():
    "A receiver that sends a byte now and then keeps no thread for ever."
    import socket

    s = socket.create_server(("127.0.0.1", 0))

    def drip():
        c, _ = s.accept()
        try:
            while True: c.send(b"H"); time.sleep(0.1)
        except OSError: pass

    threading.Thread(target=drip, daemon=True).start()
    start = time.time()
    with pytest.raises(Exception): webhooks.post(f"http://127.0.0.1:{s.getsockname()[1]}/", b"{}", {}, 0.5, True)
    assert time.time() - start < 2
    s.close()


def test_what_was_acknowledged_is_announced_after_a_kill(tmp_path, receiver):
    "Killed with an unsent queue, and once more between a commit and its announcement."
    server = Server(tmp_path / "hub")
    api = HfApi(server.url, token=TOKENS["you"])
    api.create_repo("you/kept")
    receiver.answer = lambda n: time.sleep(5) or 200
    watch(api, receiver, "you/kept")
    api.create_tag("you/kept", tag="v1")
    receiver.wait(1)
    server.kill()
    import sqlite3

    with sqlite3.connect(tmp_path / "hub/hub.sqlite3") as db: key = db.execute("SELECT key FROM repos").fetchone()[0]
    git = next((tmp_path / "hub/repos").rglob(f"{key}.git"))
    sha = subprocess.run(["git", "-C", git, "rev-parse", "main"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["git", "-C", git, "update-ref", "refs/tags/v2", sha], check=True)  # as a commit whose writer was killed
    receiver.answer = lambda n: 200
    server = Server(tmp_path / "hub")
    try:
        receiver.wait(3)
        assert [[u.ref for u in p.updatedRefs] for _, p, _ in receiver.got] == [["refs/tags/v1"], ["refs/tags/v1"], ["refs/tags/v2"]]
    finally: server.stop()
