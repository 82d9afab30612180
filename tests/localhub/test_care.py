"""Checking and cleaning a data folder: each kind of fault, what stays and what goes, writers at work meanwhile."""
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import contextmanager
from fnmatch import fnmatch

import httpx
import pygit2
import pytest
from hub_process import TOKENS, Server
from huggingface_hub import CommitOperationAdd, HfApi

from hfflow.localhub import care
from hfflow.localhub.pages import sign_in_link
from hfflow.localhub.server import running
from hfflow.localhub.store import HubError
from hfflow.localhub.signed import sign
from hfflow.localhub.wire import Hub

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")
AUTH = {"Authorization": f"Bearer {TOKENS['you']}"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A Hub of this test's own: its client and its `Hub`."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running(tmp_path / "hub", users=[f"{n}:{t}" for n, t in TOKENS.items()]) as (url, hub):
        yield HfApi(url, token=TOKENS["you"]), hub


@pytest.fixture
def at_once(monkeypatch):
    "The second look follows at once: nobody is writing."
    monkeypatch.setattr(care.time, "sleep", lambda s: None)


def put(api, repo, path, data, **kw):
    return api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=repo, **kw)


def sha(data): return hashlib.sha256(data).hexdigest()


def free(hub, older=0, dry=False): return {f.what.split()[0]: f for f in care.gc(hub.data, older, dry)}


@contextmanager
def workers(work, count=3):
    "Run `work(n)` in threads while the block runs; what goes wrong in one goes wrong here."
    failed = []

    def run(n):
        try: work(n)
        except BaseException as e: failed.append(e)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    [t.start() for t in threads]
    try: yield
    finally:
        work.stop.set()
        [t.join() for t in threads]
    if failed: raise failed[0]


def whats(hub, **kw): return [f"{f.where}: {f.what}" for f in care.check(hub.data, **kw)]


def key_of(hub, repo, kind="model"): return hub.db.find(kind, repo).key


# ---- check

def test_a_healthy_hub(here):
    api, hub = here
    api.create_repo("you/a")
    put(api, "you/a", "w.bin", os.urandom(2000))
    put(api, "you/a", "x/y.txt", b"1")
    api.create_tag("you/a", tag="v1", tag_message="First")
    api.create_branch("you/a", branch="dev")
    api.create_commit("you/a", [CommitOperationAdd("z", b"2")], commit_message="PR", create_pr=True)
    api.create_repo("you/empty", repo_type="space", space_sdk="static")
    bar = type("Bar", (), {"total": 0, "n": 0, "update": lambda self, n: setattr(self, "n", self.n + n)})()
    assert care.check(hub.data, bar=bar) == []
    assert bar.n == bar.total > 2000


def damage(file):
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def loose(hub, repo, oid): return hub.store.path(key_of(hub, repo)) / "objects" / oid[:2] / oid[2:]


@pytest.mark.parametrize("fault", ["blob missing", "blob damaged", "commit missing", "no main", "lfs missing", "lfs damaged", "lfs cut", "no folder",
                                   "no row", "stale", "behind", "lfs of no commit", "no repository"])
def test_each_fault_is_found(here, at_once, fault):
    api, hub = here
    api.create_repo("you/a")
    put(api, "you/a", "w.bin", b"\0" * 2000)
    put(api, "you/a", "x/y.txt", b"one\n")
    repo, oid = hub.store.open(key_of(hub, "you/a")), sha(b"\0" * 2000)
    head = repo.resolve("main")
    text, large = loose(hub, "you/a", repo.entry(head, "x/y.txt").oid), hub.store.lfs.path(oid)
    folder, mended = hub.store.path(key_of(hub, "you/a")), False
    if fault == "blob missing": text.unlink(); says = "x/y.txt is missing"
    elif fault == "blob damaged": damage(text); says = "x/y.txt is damaged"
    elif fault == "commit missing": loose(hub, "you/a", str(head.parent_ids[0])).unlink(); says = "refs/heads/main is missing"
    elif fault == "no main": (folder / "refs/heads/main").rename(folder / "refs/heads/other"); says = "no branch `main`"
    elif fault == "lfs missing": large.unlink(); says = "the large file w.bin"
    elif fault == "lfs damaged": damage(large); says = "is damaged"
    elif fault == "lfs cut": large.write_bytes(b"\0" * 1999); says = "is damaged"
    elif fault == "no folder": shutil.rmtree(folder); says, mended = "its folder is missing", True
    elif fault == "no row": hub.db.drop_repo(key_of(hub, "you/a")); says = "no repo has this folder"
    elif fault == "stale": hub.db.set_repo(key_of(hub, "you/a"), stale=1); says, mended = "its newest commit", True
    elif fault == "behind": hub.db.set_repo(key_of(hub, "you/a"), sha="0" * 40); says, mended = "its newest commit", True
    elif fault == "lfs of no commit": hub.db.link_lfs(key_of(hub, "you/a"), "f" * 64, 3); says, mended = "no commit needs", True
    elif fault == "no repository": (folder / "HEAD").unlink(); says = "no git repository"
    found = care.check(hub.data)
    assert len(found) == 1 and says in found[0].what and found[0].todo, found
    if fault == "lfs damaged": assert whats(hub, quick=True) == []
    assert care.repair(hub.data, found) == ([] if mended and fault != "no folder" else found)      # nothing is forgotten unasked
    assert care.repair(hub.data, found, ask=lambda q: "you/a" in q) == ([] if mended else found)
    assert (care.check(hub.data) == []) == mended
    if fault in ("lfs missing", "lfs damaged"):                                                    # what it says helps
        large.unlink(missing_ok=True)
        put(api, "you/a", "w.bin", b"\0" * 2000)
        assert care.check(hub.data) == []


@pytest.mark.parametrize("fault", ["damaged", "no index", "gone", "wrong"])
def test_files_in_chunks(here, at_once, fault, monkeypatch):
    from huggingface_hub import constants
    api, hub = here
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    data = os.urandom(300_000)
    api.create_repo("you/a")
    api.create_bucket("you/b")
    put(api, "you/a", "w.bin", data)
    api.batch_bucket_files("you/b", add=[(data[:200_000], "half.bin")])
    assert care.check(hub.data) == []
    xorbs = care.objects(hub.chunks.xorbs)
    if fault == "wrong": hub.db.conn.execute("UPDATE xet_files SET size=size+1")
    for f in xorbs if fault != "wrong" else []:
        if fault == "damaged": damage(f)
        elif fault == "no index": f.chmod(0o644), os.truncate(f, f.stat().st_size - 4)
        elif fault == "gone": f.unlink()
    found = care.check(hub.data)
    assert found and all(f.todo.startswith("use --repair") for f in found), found
    if fault == "damaged": assert care.check(hub.data, quick=True) == []
    assert care.repair(hub.data, found) == found                            # nothing is forgotten unasked
    assert care.repair(hub.data, found, ask=lambda q: True) == []
    assert sorted(f.what.split(" (")[0] for f in care.check(hub.data)) == ["the chunks of half.bin are missing", "the large file w.bin"]
    put(api, "you/a", "w.bin", data)                                        # what it says helps
    api.batch_bucket_files("you/b", add=[(data[:200_000], "half.bin")])
    assert care.check(hub.data) == []
    assert open(api.hf_hub_download("you/a", "w.bin", force_download=True), "rb").read() == data


def test_a_damaged_database(here):
    _, hub = here
    copy = hub.data.parent / "copy"
    copy.mkdir()
    with sqlite3.connect(copy / "hub.sqlite3") as c: hub.db.conn.backup(c)
    c.close()
    damage(copy / "hub.sqlite3")
    with open(copy / "hub.sqlite3", "r+b") as f: f.write(b"no database at all")
    assert [f.where for f in care.check(copy)] == ["hub.sqlite3"]
    with pytest.raises(HubError, match="no data folder"): care.check(hub.data.parent)
    assert not (hub.data.parent / "repos").exists(), "a check makes nothing"


def test_check_while_people_write_and_after_a_kill(tmp_path):
    s, made = Server(tmp_path), []

    def work(n):
        with httpx.Client(base_url=s.url, headers=AUTH, trust_env=False, timeout=30) as c:
            c.post("/api/repos/create", json=dict(name=f"r{n}")).raise_for_status()
            while not work.stop.is_set():
                body = [dict(key="header", value=dict(summary="x")), dict(key="file", value=dict(path="a", content=os.urandom(6).hex()))]
                made.append(c.post(f"/api/models/you/r{n}/commit/main", content="\n".join(map(json.dumps, body))).raise_for_status())
                c.post("/api/repos/create", json=dict(name=f"gone{n}")).raise_for_status()
                c.request("DELETE", "/api/repos/delete", json=dict(name=f"gone{n}")).raise_for_status()

    work.stop = threading.Event()
    try:
        with workers(work):
            end, looks = time.time() + 20, 0
            while (len(made) < 30 or looks < 3) and time.time() < end:
                assert care.check(tmp_path) == []
                looks += 1
    finally: s.kill()
    assert len(made) >= 30 and looks >= 3
    assert care.check(tmp_path) == []
    s = Server(tmp_path)
    assert care.check(tmp_path) == []
    s.stop()


# ---- gc

def test_what_any_ref_needs_stays(here):
    api, hub = here
    api.create_repo("you/a")
    put(api, "you/a", "old.bin", b"\0old" * 500)
    put(api, "you/a", "old.bin", b"\0new" * 500)                                      # needed by the commit before
    api.create_branch("you/a", branch="dev")
    put(api, "you/a", "dev.bin", b"\0dev" * 500, revision="dev")
    put(api, "you/a", "pr.bin", b"\0pr" * 500, create_pr=True)
    put(api, "you/a", "tag.bin", b"\0tag" * 500, revision="dev")
    api.create_tag("you/a", tag="v1", revision="dev")
    assert free(hub)["large"].count == 0
    api.delete_branch("you/a", branch="dev")
    assert free(hub)["large"].count == 0, "the tag leads to both"
    api.delete_tag("you/a", tag="v1")
    gone = free(hub)
    assert (gone["large"].count, gone["large"].bytes) == (2, 4000 if shutil.which("git") else 0)
    for data in (b"\0old", b"\0new", b"\0pr"): assert hub.store.lfs.size(sha(data * 500))
    assert care.check(hub.data) == []


@needs_git
def test_a_squash_frees_history_in_packs_too(here):
    api, hub = here
    api.create_repo("you/a")
    ops = [CommitOperationAdd(f"f{i}", os.urandom(300)) for i in range(40)]           # one pack
    api.create_commit("you/a", ops, commit_message="Many")
    for i in range(3): put(api, "you/a", "f0", b"%d" % i)
    before = hub.store.open(key_of(hub, "you/a")).resolve("main").id
    api.super_squash_history("you/a")
    assert free(hub, 3600)["git"].count == 0                                         # too young
    assert free(hub, dry=True)["git"] == free(hub)["git"]
    assert free(hub)["git"].count == 0
    repo = hub.store.open(key_of(hub, "you/a"))
    assert before not in repo.git and len(api.list_repo_files("you/a")) == 41
    assert care.check(hub.data) == []
    put(api, "you/a", "f1", b"and on it goes")


def test_dry_run_and_grace(here):
    api, hub = here
    api.create_repo("you/a")
    batch = httpx.post(f"{api.endpoint}/you/a.git/info/lfs/objects/batch", headers=AUTH, trust_env=False,
                       json=dict(operation="upload", objects=[dict(oid=sha(b"lost"), size=4)])).json()
    assert httpx.put(batch["objects"][0]["actions"]["upload"]["href"], content=b"lost", trust_env=False).status_code == 200
    assert free(hub, 3600)["large"].count == 0 and hub.store.lfs.size(sha(b"lost")) == 4
    then = time.time() - 7200
    os.utime(hub.store.lfs.path(sha(b"lost")), (then, then))
    with hub.db.tx() as c: c.execute("UPDATE lfs SET created=?", (then,))
    assert free(hub, 3600, dry=True)["large"].count == 1
    # asking to upload it again counts as fresh, though no byte travels
    batch = httpx.post(f"{api.endpoint}/you/a.git/info/lfs/objects/batch", headers=AUTH, trust_env=False,
                       json=dict(operation="upload", objects=[dict(oid=sha(b"lost"), size=4)])).json()
    assert "actions" not in batch["objects"][0]
    assert free(hub, 3600)["large"].count == 0
    assert free(hub, 0, dry=True)["large"].bytes == 4 and hub.store.lfs.size(sha(b"lost")) == 4
    assert free(hub, 0)["large"].bytes == 4 and hub.store.lfs.size(sha(b"lost")) is None
    put(api, "you/a", "w.bin", b"\0" * 900)
    assert api.file_exists("you/a", "w.bin")


def test_a_commit_after_the_cleaning_is_refused_not_broken(here):
    api, hub = here
    api.create_repo("you/a")
    row = hub.db.find("model", "you/a")
    hub.db.link_lfs(row.key, "a" * 64, 5)                                             # a row whose object is gone
    body = "\n".join(json.dumps(d) for d in [dict(key="header", value=dict(summary="x")),
                                             dict(key="lfsFile", value=dict(path="w.bin", algo="sha256", oid="a" * 64, size=5))])
    r = httpx.post(f"{api.endpoint}/api/models/you/a/commit/main", headers=AUTH, content=body, trust_env=False)
    assert r.status_code == 400 and "has not been uploaded" in r.json()["error"]


def test_cleaning_never_takes_what_a_commit_gets(tmp_path):
    """Uploads and commits race with a cleaner that spares nothing: whatever commit was acknowledged is whole."""
    s, done, refused = Server(tmp_path), [], []

    def work(n):
        with httpx.Client(base_url=s.url, headers=AUTH, trust_env=False, timeout=30) as c:
            c.post("/api/repos/create", json=dict(name=f"r{n}"))
            for i in range(10**6):
                if work.stop.is_set(): return
                data = f"{n} {i}".encode() * 99
                o = c.post(f"/you/r{n}.git/info/lfs/objects/batch", json=dict(operation="upload", objects=[dict(oid=sha(data), size=len(data))])).json()
                for action in [a for a in o["objects"] if "actions" in a]:
                    assert c.put(action["actions"]["upload"]["href"], content=data).status_code == 200
                if i % 2: time.sleep(.01)                                             # a cleaner's chance
                body = [dict(key="header", value=dict(summary="x")), dict(key="lfsFile", value=dict(path="w", algo="sha256", oid=sha(data), size=len(data)))]
                r = c.post(f"/api/models/you/r{n}/commit/main", content="\n".join(map(json.dumps, body)))
                if r.status_code == 200: done.append((n, r.json()["commitOid"], data))
                else:
                    assert r.status_code == 400 and "has not been uploaded" in r.text, r.text
                    refused.append(n)

    work.stop = threading.Event()
    try:
        with workers(work):
            hub, begin, freed = Hub(tmp_path), time.time(), 0
            # how soon they meet is up to the machine: four seconds at least, and until they have met
            while time.time() < begin + 4 or (not refused and time.time() < begin + 60): freed += care.lfs_objects(hub, time.time() + 1, False).count
        with httpx.Client(base_url=s.url, headers=AUTH, trust_env=False, timeout=30) as c:
            for n, oid, data in done: assert c.get(f"/you/r{n}/resolve/{oid}/w").content == data
    finally: s.stop()
    assert len(done) > 10 and freed >= len(refused) > 0, (len(done), freed, len(refused))
    assert care.check(tmp_path) == []


def test_the_gate(here):
    _, hub = here
    other = Hub(hub.data).store
    with hub.store.using():
        with pytest.raises(HubError, match="try again later"):
            with other.alone(limit=.05): pass
    order = []
    with other.alone():
        def writer():
            with hub.store.using(): order.append("writer")
        t = threading.Thread(target=writer)
        t.start()
        time.sleep(.05)
        order.append("cleaner")
    t.join()
    assert order == ["cleaner", "writer"]


def test_leftovers_and_tokens(here):
    _, hub = here
    token = hub.db.add_token("you", name="old", expires=time.time() - 5)
    keep = hub.db.add_token("you", name="new", expires=time.time() + 500)
    tmp, then = hub.store.lfs.tmp, time.time() - 7 * 3600
    (tmp / "half.part").write_bytes(b"12345")
    (tmp / "q.git").mkdir()
    (tmp / "q.git/x").write_bytes(b"123")
    for f in (tmp / "half.part", tmp / "q.git/x", tmp / "q.git"): os.utime(f, (then, then))
    (tmp / "young.part").write_bytes(b"1")
    would, did = free(hub, dry=True), free(hub)
    assert would == did and (did["files"].count, did["files"].bytes, did["tokens"].count) == (2, 8, 1)
    assert [f.name for f in tmp.iterdir()] == ["young.part"], "its upload may still go on"
    with pytest.raises(HubError): hub.db.caller(token)
    assert hub.db.caller(keep).name == "you"


@needs_git
def test_a_damaged_repo_frees_nothing(here, at_once):
    api, hub = here
    api.create_repo("you/a")
    put(api, "you/a", "w.bin", b"\0" * 3000)
    head = hub.store.open(key_of(hub, "you/a")).resolve("main")
    damage(loose(hub, "you/a", str(head.tree.id)))
    res = free(hub)
    assert res["large"].count == res["git"].count == 0 and "damaged" in res["git"].note
    assert hub.store.lfs.size(sha(b"\0" * 3000))


def test_without_git(here, monkeypatch):
    _, hub = here
    monkeypatch.setenv("PATH", "")
    assert "not installed" in free(hub)["git"].note


# ---- the folder

def test_the_folder_is_described_and_portable(tmp_path):
    """As `hub.connect` starts it: everything in it is on the list, and elsewhere it goes on."""
    from hfflow import hub as hubs
    from hfflow.engine import process
    old, new = tmp_path / "one/hub", tmp_path / "another/place"
    url = process.ensure(old)
    try:
        token = process.local_token(old)
        api = HfApi(url, token=token)
        api.create_repo("you/a", private=True)
        api.create_commit("you/a", [CommitOperationAdd("f", b"still here\n")], commit_message="x")
    finally: hubs.stop(old)
    assert [f.name for f in old.iterdir() if not any(fnmatch(f.name, p) for p in care.FILES)] == []
    assert all(str(tmp_path).encode() not in f.read_bytes() for f in old.rglob("*") if f.is_file() and "hub.log" not in f.name)
    new.parent.mkdir()
    old.rename(new)
    try:
        api = HfApi(process.ensure(new), token=process.local_token(new))
        assert process.local_token(new) == token and [m.id for m in api.list_models(author="you")] == ["you/a"]
        assert care.check(new) == []
    finally: hubs.stop(new)


# ---- signing a browser in

def test_a_sign_in_address_works_once(here):
    api, hub = here
    api.create_repo("you/secret", private=True)
    go = lambda path, **kw: httpx.get(api.endpoint + path, trust_env=False, **kw)
    link = sign_in_link(Hub(hub.data), "you", "/you/secret")
    assert go(link.replace("name=you", "name=ann")).status_code == 403
    assert go("/login?sig=x").status_code == 403 and go("/login").status_code == 200
    assert httpx.head(api.endpoint + link, trust_env=False).status_code == 200       # a look ahead does not use it up
    r = go(link)
    assert r.status_code == 303 and r.headers["Location"] == "/you/secret" and "HttpOnly" in r.headers["Set-Cookie"]
    assert go("/you/secret", cookies={"hub": r.cookies["hub"]}).status_code == 200
    again = go(link)
    assert again.status_code == 403 and "signed somebody in already" in again.text
    assert go(sign_in_link(hub, "you", seconds=-1)).status_code == 403
    assert go("/login?" + sign(hub, key="a", oid="b", name="you", to="/")).status_code == 403   # an upload address
    assert go("/you/secret").status_code == 404
