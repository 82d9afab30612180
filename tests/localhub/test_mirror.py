"""Repos brought from one Hub to another and back: history, tags, large files, all kinds, refusals."""
import hashlib
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hub_process import TOKENS
from huggingface_hub import CommitOperationAdd, HfApi

from hfflow.localhub import mirror
from hfflow.localhub.mirror import End
from hfflow.localhub.server import running
from hfflow.localhub.store import HubError
from hfflow.localhub.wire import Limits

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")
BIG = os.urandom(300_000)


@pytest.fixture(scope="module")
def hubs(tmp_path_factory):
    "Two Hubs, `far` and `here`: client and `Hub` of each. Large files go to the second in several parts."
    folder = tmp_path_factory.mktemp("two")
    with running(folder / "far", users=[f"ann:{TOKENS['ann']}", "bob:token-of-bob-01234"]) as (a, far), \
         running(folder / "here", users=[f"you:{TOKENS['you']}"], limits=Limits(part=100_000)) as (b, here):
        yield HfApi(a, token=TOKENS["ann"]), far, HfApi(b, token=TOKENS["you"]), here


@pytest.fixture
def two(hubs, request, apis):
    "The two ends of a repo that is not there yet, their clients, and a working folder."
    far, _, here, hub = hubs
    name = request.node.name.replace("[", "-").strip("]").removeprefix("test_")[:60]
    src = End(far.endpoint, "model", f"ann/{name}", TOKENS["ann"])
    return src, End(here.endpoint, "model", f"you/{name}", TOKENS["you"]), far, here, hub.data / "mirror"


def add(api, end, path, data, **kw):
    return api.create_commit(end.id, [CommitOperationAdd(path, data)], commit_message=f"Add {path}", repo_type=end.kind, **kw).oid


def commits(api, end, **kw): return [c.commit_id for c in api.list_repo_commits(end.id, repo_type=end.kind, **kw)]


def refs(api, end):
    r = api.list_repo_refs(end.id, repo_type=end.kind)
    return {x.ref: x.target_commit for x in r.branches + r.tags}


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_there_and_back_again(two, kind):
    src, dst, far, here, work = two
    src, dst = replace(src, kind=kind), replace(dst, kind=kind)
    far.create_repo(src.id, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    first, second = kind.encode() + BIG, BIG[::-1] + kind.encode()
    add(far, src, "w.bin", first)
    add(far, src, "w.bin", second)
    for i in range(9): add(far, src, f"many/{i}/{i}", b"x")                          # trees as long as a pointer
    far.create_branch(src.id, branch="dev/one", repo_type=kind)
    add(far, src, "only-dev.bin", BIG[:1000] + kind.encode(), revision="dev/one")
    far.create_tag(src.id, tag="v1", repo_type=kind)
    far.create_tag(src.id, tag="v2", tag_message="Annotated", repo_type=kind)
    report = mirror.mirror(src, dst, work)
    assert report.created and (report.files, report.bytes) == (3, 2 * len(BIG) + 1000 + 3 * len(kind))
    assert {c.ref for c in report.changes} == {"heads/main", "heads/dev/one", "tags/v1", "tags/v2"}
    assert commits(far, src) == commits(here, dst) and refs(far, src) == refs(here, dst)
    old = commits(here, dst)[10]
    for rev, data in (("v1", second), (old, first)):
        with open(here.hf_hub_download(dst.id, "w.bin", revision=rev, repo_type=kind), "rb") as f: assert f.read() == data
    if kind == "space": assert here.space_info(dst.id).sdk == "gradio"
    assert mirror.mirror(src, dst, work).changes == [] and not any(work.iterdir())

    add(far, src, "more.txt", b"more")
    report = mirror.mirror(src, dst, work)
    assert not report.created and [str(c)[:18] for c in report.changes] == ["main: 1 new commit"] and report.files == 0

    add(here, dst, "mine.txt", b"mine")                                              # and back under another name
    back = replace(src, id=f"ann/back-{kind}")
    report = mirror.mirror(dst, back, work, private=True)
    assert report.files == 0 and commits(here, dst) == commits(far, back)
    assert far.repo_info(back.id, repo_type=kind).private


def test_commits_of_ones_own_are_not_dropped(two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    mirror.mirror(src, dst, work)
    mine, theirs = add(here, dst, "mine", b"1"), add(far, src, "theirs", b"2")
    with pytest.raises(HubError, match=f"has 1 commit that .* lacks on main .{mine[:7]} Add mine"): mirror.mirror(src, dst, work)
    with pytest.raises(HubError, match=f"{theirs[:7]} Add theirs"): mirror.mirror(dst, src, work)
    assert commits(here, dst)[0] == mine and commits(far, src)[0] == theirs
    assert mirror.mirror(dst, src, work, force=True).changes[0].lost
    assert commits(far, src)[0] == mine
    far.create_tag(src.id, tag="v1", revision=commits(far, src)[1])
    here.create_tag(dst.id, tag="v1")
    with pytest.raises(HubError, match="tag v1 stands"): mirror.mirror(src, dst, work)


def test_a_far_repo_that_was_just_made_is_filled(two):
    src, dst, far, here, work = two
    here.create_repo(dst.id)
    add(here, dst, "a", b"1")
    far.create_repo(src.id)
    assert mirror.mirror(dst, src, work).created is False
    assert commits(far, src) == commits(here, dst)


def test_one_revision(two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    first = add(far, src, "a.bin", BIG[:999])
    far.create_tag(src.id, tag="v1")
    add(far, src, "b.bin", BIG[:998])
    report = mirror.mirror(src, dst, work, "v1")
    assert refs(here, dst) == {"refs/heads/main": first, "refs/tags/v1": first} and report.files == 1
    mirror.mirror(src, dst, work, first[:10])
    assert mirror.mirror(src, dst, work, "main").files == 1
    with pytest.raises(HubError, match="no branch, tag or commit `v9`: there are main, v1"): mirror.mirror(src, dst, work, "v9")
    with pytest.raises(HubError, match="no branch, tag or commit"): mirror.mirror(src, dst, work, "--all")


def test_private_gated_absent(two):
    src, dst, far, here, work = two
    far.create_repo(src.id, private=True)
    with pytest.raises(HubError, match="set HF_TOKEN"): mirror.mirror(replace(src, token=None), dst, work)
    with pytest.raises(HubError, match="does not know this token") as e: mirror.mirror(replace(src, token="wrong-token"), dst, work)
    assert "wrong-token" not in str(e.value)
    with pytest.raises(HubError, match="add --type model"): mirror.mirror(replace(src, kind="dataset"), dst, work)
    assert mirror.mirror(src, dst, work).created and here.model_info(dst.id).private
    far.update_repo_settings(src.id, private=False, gated="manual")
    stranger = replace(src, token="token-of-bob-01234")
    with pytest.raises(HubError, match="not in the authorized list"): mirror.mirror(stranger, replace(dst, id="you/other"), work)
    assert not here.repo_exists("you/other")
    mirror.mirror(src, replace(dst, id="you/gated"), work)
    assert here.model_info("you/gated").private, "who may read it is not for the copy to say"
    with pytest.raises(HubError, match="both ends"): mirror.mirror(src, src, work)
    with pytest.raises(HubError, match="403"): mirror.mirror(src, replace(dst, id="nobody/x"), work)


def test_a_download_that_breaks_off_goes_on(two, monkeypatch):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    data = BIG[2:]
    add(far, src, "w.bin", data)
    real, got = mirror.send, []

    def flaky(method, url, *args, **kw):
        r = real(method, url, *args, **kw)
        if method == "GET" and "/lfs/" in url:
            got.append(kw["headers"]["Range"])
            if len(got) < 3:
                read, n = r.read, iter([100_000])
                def short(k=-1):
                    try: return read(next(n))
                    except StopIteration: raise ConnectionResetError("gone")
                r.read = short
        return r

    monkeypatch.setattr(mirror, "send", flaky)
    monkeypatch.setattr(mirror.time, "sleep", lambda s: None)
    assert mirror.mirror(src, dst, work).bytes == len(data)
    assert got == ["bytes=0-", "bytes=100000-", "bytes=200000-"]
    assert here.get_paths_info(dst.id, ["w.bin"])[0].lfs.sha256 == hashlib.sha256(data).hexdigest()


def test_a_lost_large_file_is_said(hubs, two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    data = os.urandom(5000)
    add(far, src, "gone.bin", data)
    add(far, src, "gone.bin", BIG[:4000])
    hubs[1].store.lfs.path(hashlib.sha256(data).hexdigest()).unlink()
    with pytest.raises(HubError, match="gone.bin") as e: mirror.mirror(src, dst, work)
    assert e.value.status == 410
    assert mirror.snapshot(src, dst, work).changes and here.file_exists(dst.id, "gone.bin")    # the newest files are all there
    data = b"\0" * 3000
    add(far, src, "bad.bin", data)
    hubs[1].store.lfs.path(hashlib.sha256(data).hexdigest()).write_bytes(b"x" * 3000)
    with pytest.raises(HubError, match="other bytes for bad.bin"):
        mirror.download(src, hashlib.sha256(data).hexdigest(), 3000, "bad.bin", work, tries=2)


def test_no_token_on_a_command_line_or_in_a_file(two, monkeypatch, tmp_path):
    src, dst, far, here, work = two
    far.create_repo(src.id, private=True)
    add(far, src, "a.txt", b"1")
    lines, real = [], subprocess.run
    monkeypatch.setattr(mirror.subprocess, "run", lambda args, **kw: lines.append(args) or real(args, **kw))
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n[core]\n\thooksPath = /nowhere\n")
    monkeypatch.setenv("HOME", str(home))
    mirror.mirror(src, dst, work)
    assert len(lines) > 5 and not any(t in str(lines) for t in TOKENS.values())
    assert [f.name for f in home.iterdir()] == [".gitconfig"]
    for f in work.rglob("*"): assert not f.is_file() or TOKENS["ann"].encode() not in f.read_bytes()
    assert TOKENS["ann"] not in repr(src)


def test_the_newest_files_alone(two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    add(far, src, "w.bin", BIG[1:])
    add(far, src, "a/b c.txt", "ä\n".encode())
    sha = add(far, src, "config.json", b"{}")
    report = mirror.snapshot(src, dst, work)
    assert report.created and report.files == 1 and len(commits(here, dst)) == 2
    title = here.list_repo_commits(dst.id)[0]
    assert title.title == f"Import {src.id} at {sha[:8]}" and sha in title.message
    assert sorted(here.list_repo_files(dst.id)) == sorted(far.list_repo_files(src.id))
    with open(here.hf_hub_download(dst.id, "a/b c.txt"), encoding="utf-8") as f: assert f.read() == "ä\n"
    assert mirror.snapshot(src, dst, work).changes == []
    far.delete_file("config.json", src.id)
    add(far, src, "a/b c.txt", b"new")
    assert "1 files new or changed, 1 gone" in mirror.snapshot(src, dst, work).changes[0]
    assert mirror.snapshot(src, dst, work, revision=sha).changes and "config.json" in here.list_repo_files(dst.id)
    add(here, dst, "mine", b"1")
    with pytest.raises(HubError, match="commits of its own, the newest is .* Add mine"): mirror.snapshot(src, dst, work)
    with pytest.raises(HubError, match="lacks on main"): mirror.mirror(src, dst, work)


def test_some_files(two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    for name in ("a.json", "b.json", "w.bin"): add(far, src, name, name.encode() * 9)
    mirror.snapshot(src, dst, work, include=["*.json"], exclude=["b*"])
    assert set(here.list_repo_files(dst.id)) == {".gitattributes", "a.json"}
    with pytest.raises(HubError, match="no file that fits \\*.onnx"): mirror.snapshot(src, dst, work, include=["*.onnx"])
    with pytest.raises(HubError, match="Invalid rev"): mirror.snapshot(src, dst, work, revision="v9")


class Odd(BaseHTTPRequestHandler):
    "A server that is no Hub, or one that leads elsewhere; notes the tokens that it gets."
    def do_GET(self):
        self.server.seen.append(self.headers.get("Authorization"))
        to = self.path.partition("/to/")[2]
        self.send_response(307 if to else 200)
        if to: self.send_header("Location", f"http://127.0.0.1:{to}/api/models/x/y")
        self.end_headers()
        if not to: self.wfile.write(b"<html>hello</html>")
    def log_message(self, *args): pass


@pytest.fixture
def odd():
    servers = [HTTPServer(("127.0.0.1", 0), Odd) for _ in range(2)]
    for s in servers:
        s.seen = []
        threading.Thread(target=s.serve_forever, daemon=True).start()
    yield servers
    for s in servers: s.shutdown(); s.server_close()


def test_odd_servers_and_no_network(two, odd):
    src, dst, far, here, work = two
    a, b = odd
    no_hub = replace(src, endpoint=f"http://127.0.0.1:{a.server_port}")
    with pytest.raises(HubError, match="not as a Hub does"): mirror.mirror(no_hub, dst, work)
    leads_on = f"{no_hub.endpoint}/to/{b.server_port}"
    with pytest.raises(HubError, match="not as a Hub does"): mirror.ask(no_hub, leads_on)
    assert a.seen[-1] == f"Bearer {TOKENS['ann']}" and b.seen == [None], "the token stays where it belongs"
    mirror_of = lambda end: mirror.mirror(replace(src, endpoint=end), dst, work)
    for end in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        with pytest.raises(HubError, match="does not answer .*check the address and your network"): mirror_of(end)
    for end in ("huggingface.co", "ftp://x", "http://you:secret@x", "http://"):
        with pytest.raises(HubError, match="not the address"): mirror_of(end)
    with pytest.raises(HubError, match="no web address"): mirror.send("GET", "file:///etc/passwd")
    for name in ("../x", "a/b/c", "", "a b", "-x"):
        with pytest.raises(HubError, match="no name of a repo"): replace(src, id=name)
    assert not here.repo_exists(dst.id)


def test_a_namespace_for_other_peoples_repos(hubs, two):
    src, dst, far, here, work = two
    far.create_repo(src.id)
    same = replace(dst, id=src.id)
    mirror.mirror(src, same, work, prepare=lambda: mirror.adopt(hubs[3].data, "ann"))
    assert here.model_info(src.id).sha == far.model_info(src.id).sha
    mirror.adopt(hubs[3].data, "ann")
    mirror.adopt(hubs[3].data, "you")
    assert [o["name"] for o in here.whoami()["orgs"]] == ["ann"]
    assert mirror.user_of(src.endpoint, src.token) == "ann"
