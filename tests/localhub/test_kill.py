"""A Hub that is killed at any moment has every acknowledged write, and no other by halves.

`HFFLOW_KILLS=n` sets the number of kills at random moments; the nightly run of CI asks for 500.
"""
import base64
import errno
import hashlib
import itertools
import json
import os
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pygit2
import pytest
from hfflow.localhub.server import running
from hfflow.localhub.store import read_pointer, write_pointer
from hfflow.localhub.wire import Limits
from hub_process import TOKENS
from nursery import Client, Nursery

KILLS = int(os.environ.get("HFFLOW_KILLS", 200))


def sha(data):
    return hashlib.sha256(data).hexdigest()


def commit_body(summary, files=(), lfs=(), deleted=(), parent=None):
    lines = [dict(key="header", value=dict(summary=summary) | (dict(parentCommit=parent) if parent else {}))]
    lines += [dict(key="file", value=dict(path=p, content=base64.b64encode(b).decode())) for p, b in dict(files).items()]
    lines += [dict(key="lfsFile", value=dict(path=p, algo="sha256", oid=sha(b), size=len(b))) for p, b in dict(lfs).items()]
    return "\n".join(map(json.dumps, lines + [dict(key="deletedFile", value=dict(path=p)) for p in deleted]))


def put_lfs(c, repo, data, die={}):
    batch = dict(operation="upload", transfers=["basic"], objects=[dict(oid=sha(data), size=len(data))])
    action = c("POST", f"/{repo}.git/info/lfs/objects/batch", batch)[1]["objects"][0].get("actions")
    return c("PUT", action["upload"]["href"], data, **die) if action else (200, {})


def push_body(git, old, new, ref):
    """What `git push` sends: a command, and a pack with the new commit and its files."""
    pack, trees = pygit2.PackBuilder(git), [git[new].tree]
    pack.add(git[new].id)
    while trees:
        tree = trees.pop()
        pack.add(tree.id)
        for o in tree:
            trees.append(o) if o.type_str == "tree" else pack.add(o.id)
    with tempfile.TemporaryDirectory() as folder:
        pack.write(folder)
        data = next(Path(folder).glob("*.pack")).read_bytes()
    line = f"{old} {new} {ref}\0report-status"
    return f"{len(line) + 4:04x}{line}0000".encode("utf-8", "surrogateescape") + data


class Folder:
    """A Hub's data folder, read without the Hub."""

    def __init__(self, data):
        self.data = data
        self.db = sqlite3.connect(f"file:{data}/hub.sqlite3?mode=ro", uri=True, isolation_level=None)
        self.db.row_factory = sqlite3.Row

    def all(self, sql, *args):
        return [dict(r) for r in self.db.execute(sql, args)]

    def git(self, key):
        return pygit2.Repository(str(self.data / f"repos/{key[:2]}/{key}.git"))

    def objects(self, key):
        """The LFS objects that a repo may use, each read and hashed."""
        linked = {r["oid"]: r["size"] for r in self.all("SELECT * FROM lfs WHERE key=?", key)}
        for oid, size in linked.items():
            data = (self.data / f"lfs/objects/{oid[:2]}/{oid[2:4]}/{oid}").read_bytes()
            assert len(data) == size and sha(data) == oid
        return linked

    def files(self, tree, linked, at=""):
        """Path and blob of each file, each read and hashed."""
        for o in tree:
            raw = o.read_raw()
            assert hashlib.sha1(f"{o.type_str} {len(raw)}\0".encode() + raw).hexdigest() == str(o.id)
            if o.type_str == "tree":
                yield from self.files(o, linked, f"{at}{o.name}/")
            else:
                assert not (pointer := read_pointer(raw)) or linked[pointer.oid] == pointer.size
                yield at + o.name, str(o.id)

    def refs(self, git, linked):
        for ref in git.references.iterator():
            target = git[ref.target]
            commits = list(git.walk(target.peel(pygit2.Commit).id, pygit2.enums.SortMode.TOPOLOGICAL))
            assert all(len(c.parents) == 1 for c in commits[:-1]) and not commits[-1].parents
            yield ref.name, (target.type_str, [c.message.splitlines()[0] for c in commits], dict(self.files(commits[0].tree, linked)))

    def talk(self, key):
        for d in self.all("SELECT * FROM discussions WHERE key=? ORDER BY num", key):
            events = [(e["type"], json.loads(e["data"])) for e in self.all("SELECT * FROM events WHERE key=? AND num=? ORDER BY seq", key, d["num"])]
            told = [(type, data.get("status"), data.get("subject"), data.get("latest", {}).get("raw")) for type, data in events]
            yield d["num"], (d["title"], d["status"], d["base"], bool(d["merged"]), told)

    def look(self, name):
        """All that a caller can tell of a repo and of those made from it, without ids and times."""
        res = {}
        for row in self.all("SELECT * FROM repos WHERE id=? OR id LIKE ?", name, name + "-%"):
            linked, moved = self.objects(row["key"]), len(self.all("SELECT * FROM moved WHERE key=?", row["key"]))
            res[row["id"].removeprefix(name)] = dict(refs=dict(self.refs(self.git(row["key"]), linked)), lfs=sorted(linked.values()), moved=moved, talk=dict(self.talk(row["key"])),
                                                     likes=row["likes"], private=row["private"])
        return res

    def folders(self):
        """The keys of the folders there are, and of those that have a name."""
        return {d.name[:-4] for d in self.data.glob("repos/??/*.git")}, {r["key"] for r in self.all("SELECT key FROM repos WHERE kind<>'bucket'")}

    def agree(self, client, name):
        """The API says of these repos what git holds."""
        for repo in self.all("SELECT * FROM repos WHERE id=? OR id LIKE ?", name, name + "-%"):
            refs, where = self.git(repo["key"]).references, f"/api/{repo['kind']}s/{repo['id']}"
            status, info = client("GET", where)
            assert status == 200 and info["sha"] == str(refs["refs/heads/main"].target)
            status, told = client("GET", f"{where}/refs?include_prs=1")
            told = {r["ref"] for group in told.values() for r in group}
            assert status == 200 and told == set(refs)
            listed = next(m for m in client("GET", f"/api/{repo['kind']}s?search={repo['id']}")[1] if m["id"] == repo["id"])
            assert listed["sha"] == info["sha"]


class Op:
    """One write: `prepare` makes what it needs, `act` is the request that dies."""

    def __init__(self, client, repo):
        self.c, self.repo, self.api = client, repo, f"/api/models/{repo}"

    def commit(self, branch="main", die={}, query="", **kw):
        return self.c("POST", f"{self.api}/commit/{branch}{query}", commit_body(**kw), **die)

    def pull_request(self):
        self.commit(query="?create_pr=1", summary="A pull request", files={"pr.txt": b"from a pull request"})

    def prepare(self):
        pass


class SmallCommit(Op):
    def act(self, die):
        return self.commit(summary="Small", files={"a.txt": b"1", "b/c.txt": b"2"}, deleted=["old.txt"], die=die)


class LargeCommit(Op):
    def act(self, die):
        return self.commit(summary="Large", files={f"many/{i}": b"%d" % i for i in range(30)}, die=die)


class LfsUpload(Op):
    def act(self, die):
        return put_lfs(self.c, self.repo, b"\0" + sha(self.repo.encode()).encode(), die)


class LfsCommit(Op):
    def prepare(self):
        put_lfs(self.c, self.repo, b"\0a file" * 100)

    def act(self, die):
        return self.commit(summary="A large file", lfs={"x.weird": b"\0a file" * 100}, die=die)


class Multipart(Op):
    def prepare(self):
        data = sha(self.repo.encode()).encode() * 20_000
        batch = dict(operation="upload", transfers=["basic", "multipart"], objects=[dict(oid=sha(data), size=len(data))])
        up = self.c("POST", f"/{self.repo}.git/info/lfs/objects/batch", batch)[1]["objects"][0]["actions"]["upload"]
        step = int(up["header"].pop("chunk_size"))
        tags = [self.c("PUT", href, data[step * i:step * (i + 1)])[0] for i, href in enumerate(up["header"].values())]
        self.done = up["href"], dict(oid=sha(data), parts=[dict(partNumber=i + 1, etag="x") for i in range(len(tags))])

    def act(self, die):
        return self.c("POST", *self.done, **die)


class CreateRepo(Op):
    def act(self, die):
        return self.c("POST", "/api/repos/create", dict(name=self.repo.split("/")[1] + "-new"), **die)


class DeleteRepo(Op):
    def act(self, die):
        return self.c("DELETE", "/api/repos/delete", dict(name=self.repo.split("/")[1]), **die)


class MoveRepo(Op):
    def act(self, die):
        return self.c("POST", "/api/repos/move", dict(fromRepo=self.repo, toRepo=self.repo + "-moved"), **die)


class Duplicate(Op):
    prepare = LfsCommit.prepare

    def act(self, die):
        return self.c("POST", f"{self.api}/duplicate", dict(repository=self.repo + "-copy"), **die)


class Branch(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/branch/dev", {}, **die)


class DeleteBranch(Op):
    def prepare(self):
        Branch.act(self, {})

    def act(self, die):
        return self.c("DELETE", f"{self.api}/branch/dev", **die)


class Tag(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/tag/main", dict(tag="v1", message="First"), **die)


class Squash(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/super-squash/main", dict(message="One"), **die)


class Discussion(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/discussions", dict(title="A talk", description="First words"), **die)


class Draft(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/discussions", dict(title="A draft", description="First words", pullRequest=True), **die)


class CommitPullRequest(Op):
    def act(self, die):
        return self.commit(query="?create_pr=1", summary="A pull request", files={"pr.txt": b"1"}, die=die)


class CommitToPullRequest(Op):
    prepare = Op.pull_request

    def act(self, die):
        return self.commit("refs%2Fpr%2F1", summary="More", files={"more.txt": b"1"}, die=die)


class Merge(Op):
    prepare = Op.pull_request

    def act(self, die):
        return self.c("POST", f"{self.api}/discussions/1/merge", dict(comment="Thanks"), **die)


class Close(Op):
    prepare = Op.pull_request

    def act(self, die):
        return self.c("POST", f"{self.api}/discussions/1/status", dict(status="closed", comment="No"), **die)


class Retitle(Op):
    prepare = Op.pull_request

    def act(self, die):
        return self.c("POST", f"{self.api}/discussions/1/title", dict(title="Another title"), **die)


class ForgetLfs(Op):
    def prepare(self):
        LfsCommit.prepare(self)
        LfsCommit.act(self, {})
        self.c("POST", f"{self.api}/branch/dev", {})
        self.c("POST", f"{self.api}/tag/main", dict(tag="v1", message="First"))

    def act(self, die):
        return self.c("POST", f"{self.api}/lfs-files/batch", dict(deletions=dict(sha=[sha(b"\0a file" * 100)])), **die)


class Like(Op):
    def act(self, die):
        return self.c("POST", f"{self.api}/like", **die)


class Push(Op):
    ref = "refs/heads/main"

    def act(self, die):
        folder = Folder(self.c.nursery.data)
        git = folder.git(folder.all("SELECT key FROM repos WHERE id=?", self.repo)[0]["key"])
        old = git.references[self.ref].target
        tree = git.TreeBuilder(git[old].tree)
        tree.insert("pushed.txt", git.create_blob(b"pushed"), pygit2.enums.FileMode.BLOB)
        who = pygit2.Signature("Ann", "ann@example.org", 1_700_000_000, 0)
        new = git.create_commit(None, who, who, "Pushed", tree.write(), [old])
        body = push_body(git, old, new, self.ref)
        status, text = self.c("POST", f"/{self.repo}/git-receive-pack", body, **die)
        assert status != 200 or b"ok " + self.ref.encode() in text
        return status, text


class PushToPullRequest(Push):
    prepare = Op.pull_request
    ref = "refs/pr/1"


@pytest.fixture(scope="module")
def nursery():
    n = Nursery()
    yield n
    n.close()


@pytest.fixture
def data(tmp_path):
    """A folder in memory where there is one: what a killed process wrote, the kernel keeps, and no disk has to be waited for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder) / "data"


OPS = [op for base in (Op, Push) for op in base.__subclasses__()]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_killed_after_each_step(nursery, op, data):
    """Wherever a request dies: all of what it does is there, or nothing."""
    nursery.start(data, doomed=True)
    client = Client(nursery)

    def prepared(i):
        client("POST", "/api/repos/create", dict(name=f"r{i}"))
        o = op(client, f"you/r{i}")
        o.commit(summary="First", files={"old.txt": b"old", "d/old.txt": b"old"})
        o.prepare()
        return o

    o, folder = prepared(0), Folder(nursery.data)
    before = folder.look(o.repo)
    status, _ = o.act(dict(X_Scout="1"))
    assert 200 <= status < 300
    after, steps = folder.look(o.repo), json.loads(client.steps)
    assert before != after and steps
    kills = 0
    for step, o in [(step, prepared(step)) for step in steps]:
        assert folder.look(o.repo) == before
        try:
            o.act(dict(X_Die_After=str(step)))
        except Client.Dead:
            nursery.wait()
            nursery.start(doomed=True)
            kills += 1
            there, named = folder.folders()
            assert there == named, f"killed after step {step} of {steps}"
        folder.agree(client, o.repo)
        assert folder.look(o.repo) in (before, after), f"killed after step {step} of {steps}"
    assert kills >= len(steps) - 1  # a folder that was there already is a step less
    nursery.kill()


def blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Writer(threading.Thread):
    """Writes as fast as it can, and keeps what it was told.

    `tried` says which files a commit of that name has, should it be there; `known` what must be true: a fact is taken out before
    a request that ends it goes out, and the next one comes in with its answer.
    """

    def __init__(self, nursery, n):
        super().__init__(daemon=True)
        self.c, self.n, self.rng, self.tried, self.known, self.recent, self.counts, self.wrong = Client(nursery), n, random.Random(n), {}, {}, {}, Counter(), None
        self.acks = 0

    def run(self):
        for i in itertools.count():
            self.c.nursery.gate.wait()
            if self.c.nursery.over:
                return
            try:
                self.step(f"w{self.n}-{i}", i)
                self.counts["done"] += 1
            except Client.Dead:
                self.counts["cut off"] += 1
                time.sleep(0.002)
            except BaseException as e:  # the test tells
                self.wrong = e
                return

    def ask(self, method, path, body=None):
        status, res = self.c(method, path, body)
        assert status in (200, 201), f"{method} {path}: {status} {res}"
        self.acks += 1
        return res

    def know(self, value, *fact):
        self.known[fact] = self.recent[fact] = value

    def forget(self, *start):
        for d in (self.known, self.recent):
            for fact in [f for f in d if f[:len(start)] == start]:
                del d[fact]

    def commit(self, repo, branch, name, query="", files={}, lfs={}):
        self.tried[name] = {p: blob(b) for p, b in files.items()} | {p: blob(write_pointer(sha(b), len(b))) for p, b in lfs.items()}
        return self.ask("POST", f"/api/models/{repo}/commit/{branch}{query}", commit_body(name, files, lfs))


class Commits(Writer):
    """Small and large commits to one branch that others write too."""

    def step(self, name, i):
        files = {f"{name}/{j}.txt": f"{name} {j}\n".encode() * 20 for j in range(self.rng.choice((1, 2, 40)))}
        self.know(self.commit("you/shared", "main", name, files=files)["commitOid"], "commit", "you/shared", "refs/heads/main", name)


class Lfs(Writer):
    def step(self, name, i):
        data = b"\0" + name.encode() * self.rng.randrange(1, 20_000)
        assert put_lfs(self.c, "you/large", data)[0] == 200
        self.know(len(data), "object", "you/large", sha(data))
        self.know(self.commit("you/large", "main", name, lfs={f"{name}.bin": data})["commitOid"], "commit", "you/large", "refs/heads/main", name)


class Branches(Writer):
    def step(self, name, i):
        repo, ref, api = "you/branches", f"refs/heads/{name}", "/api/models/you/branches"
        self.ask("POST", f"{api}/branch/{name}", {})
        self.know(True, "ref", repo, ref)
        self.know(self.commit(repo, name, name, files={f"{name}.txt": name.encode()})["commitOid"], "commit", repo, ref, name)
        self.ask("POST", f"{api}/tag/{name}", dict(tag=name, message=name))
        self.know(True, "ref", repo, f"refs/tags/{name}")
        if i % 4:
            self.forget("ref", repo, ref)
            self.forget("commit", repo, ref)
            self.ask("DELETE", f"{api}/branch/{name}")
            self.know(False, "ref", repo, ref)


class Talk(Writer):
    """Discussions, pull requests and their merges."""

    def step(self, name, i):
        api = "/api/models/you/talk/discussions"
        num = self.ask("POST", api, dict(title=name, description=name))["num"]
        self.know(None, "comment", num, name)
        self.ask("POST", f"{api}/{num}/comment", dict(comment=f"again {name}"))
        self.know(None, "comment", num, f"again {name}")
        res = self.commit("you/talk", "main", name, "?create_pr=1", files={f"{name}.txt": name.encode()})
        num = int(res["pullRequestUrl"].split("/")[-1])
        self.know(res["commitOid"], "commit", "you/talk", f"refs/pr/{num}", name)
        self.know(self.ask("POST", f"{api}/{num}/merge", dict(comment=f"merged {name}"))["mergeCommitId"], "merge", num)
        self.know(None, "comment", num, f"merged {name}")


class Repos(Writer):
    def step(self, name, i):
        self.ask("POST", "/api/repos/create", dict(name=name))
        self.know(True, "repo", f"you/{name}")
        self.know(self.commit(f"you/{name}", "main", name, files={"a.txt": name.encode()})["commitOid"], "commit", f"you/{name}", "refs/heads/main", name)
        if i % 4:
            self.forget("repo", f"you/{name}")
            self.forget("commit", f"you/{name}")
            self.ask("DELETE", "/api/repos/delete", dict(name=name))
            self.know(False, "repo", f"you/{name}")


class Pushes(Writer):
    """What `git push` sends: a new branch each time."""

    def step(self, name, i):
        with tempfile.TemporaryDirectory() as folder:
            git = pygit2.init_repository(folder, bare=True)
            who, tree, ref = pygit2.Signature("Ann", "ann@example.org"), git.TreeBuilder(), f"refs/heads/{name}"
            tree.insert(f"{name}.txt", git.create_blob(name.encode()), pygit2.enums.FileMode.BLOB)
            self.tried[name] = {f"{name}.txt": blob(name.encode())}
            new = str(git.create_commit(None, who, who, name, tree.write(), []))
            res = self.ask("POST", "/you/pushed/git-receive-pack", push_body(git, "0" * 40, new, ref))
        assert b"ok " + ref.encode() in res, res
        self.know(new, "commit", "you/pushed", ref, name)


class Proof:
    """Compares what the writers were told with what the folder holds."""

    def __init__(self, folder, writers):
        self.folder, self.writers, self.whole = folder, writers, set()

    def git(self, repo):
        return self.folder.git(self.folder.all("SELECT key FROM repos WHERE id=?", repo)[0]["key"])

    def told(self, recent=True):
        """Check what was acknowledged since the last time, or everything."""
        for w in self.writers:
            facts, w.recent = dict(w.recent if recent else w.known), {}
            for (kind, *what), value in facts.items():
                getattr(self, kind)(value, *what)

    def all_whole(self):
        """Acknowledged or not: nothing is there by halves."""
        tried = {name: files for w in self.writers for name, files in w.tried.items()}
        for row in self.folder.all("SELECT * FROM repos"):
            self.history(row, tried)
        self.talk()

    def repo(self, there, id):
        assert bool(self.folder.all("SELECT * FROM repos WHERE id=?", id)) == there

    def ref(self, there, repo, ref):
        assert (ref in self.git(repo).references) == there

    def commit(self, oid, repo, ref, name):
        git = self.git(repo)
        head = git.references[ref].target
        assert str(head) == oid or git.descendant_of(head, oid)
        assert git[oid].message == name

    def object(self, size, repo, oid):
        row, = self.folder.all("SELECT lfs.size FROM lfs JOIN repos ON lfs.key=repos.key WHERE repos.id=? AND oid=?", repo, oid)
        data = (self.folder.data / f"lfs/objects/{oid[:2]}/{oid[2:4]}/{oid}").read_bytes()
        assert row["size"] == size == len(data) and sha(data) == oid

    def comment(self, _, num, text):
        events = self.folder.all("SELECT data FROM events JOIN repos ON events.key=repos.key WHERE repos.id='you/talk' AND num=? AND type='comment'", num)
        assert [json.loads(e["data"])["latest"]["raw"] for e in events].count(text) == 1

    def merge(self, oid, num):
        row, = self.folder.all("SELECT d.* FROM discussions d JOIN repos ON d.key=repos.key WHERE repos.id='you/talk' AND num=?", num)
        assert (row["status"], row["merged"]) == ("merged", oid)

    def history(self, row, tried):
        """Every commit of every ref is what somebody tried to write, and its history is a line."""
        git = self.folder.git(row["key"])
        for ref in git.references.iterator():
            for c in git.walk(ref.peel(pygit2.Commit).id):
                if str(c.id) in self.whole:
                    break
                parents, name = c.parents, c.message.split(" (#")[0]
                diff = c.tree.diff_to_tree(parents[0].tree, swap=True) if parents else c.tree.diff_to_tree(swap=True)
                new = {d.new_file.path: str(d.new_file.id) for d in diff.deltas if d.new_file.path != ".gitattributes"}
                assert len(parents) <= 1 and (new == tried[name] if name != "initial commit" else not new and not parents)
                assert all(git[oid].size >= 0 for oid in new.values())
                self.whole.add(str(c.id))

    def talk(self):
        """A discussion has its words, a pull request its branch and its merge."""
        key = self.folder.all("SELECT key FROM repos WHERE id='you/talk'")[0]["key"]
        git, talk = self.folder.git(key), dict(self.folder.talk(key))
        merged = [c.message for c in git.walk(git.references["refs/heads/main"].target) if " (#" in c.message]
        for num, (title, status, base, oid, events) in talk.items():
            said = [raw for type, *_, raw in events if type == "comment"]
            if base is None:
                assert said in ([title], [title, f"again {title}"])
                continue
            assert git[git.references[f"refs/pr/{num}"].target].message == title and [e[2] for e in events if e[0] == "commit"] == [title]
            told = status == "merged", oid, said == [f"merged {title}"], ("status-change", "merged", None, None) in events
            assert all(told) or not any(told)
            assert [m.startswith(f"{title} (#{num})") for m in merged].count(True) == all(told)
        assert sorted(talk) == list(range(1, len(talk) + 1))
        assert {r for r in git.references if r.startswith("refs/pr/")} == {f"refs/pr/{n}" for n, d in talk.items() if d[2]}


def test_killed_at_random_moments(nursery, data):
    """Writers of every kind at once, the Hub killed under them again and again."""
    rng = random.Random(1)
    nursery.gate, nursery.over, nursery.starts = threading.Event(), False, []
    nursery.start(data)
    ask, folder = Client(nursery), Folder(nursery.data)
    for name in ("shared", "large", "branches", "talk", "pushed"):
        assert ask("POST", "/api/repos/create", dict(name=name))[0] == 200
    writers = [kind(nursery, n) for n, kind in enumerate([Commits, Commits, Lfs, Branches, Talk, Repos, Pushes])]
    proof = Proof(folder, writers)
    for w in writers:
        w.start()
    for n in range(KILLS):
        nursery.gate.set()
        end, deadline = sum(w.acks for w in writers) + rng.randrange(30 if n % 10 == 0 else 6), time.time() + 5
        while sum(w.acks for w in writers) < end and time.time() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        nursery.kill()
        nursery.gate.clear()
        nursery.start()
        proof.told()
        there, named = folder.folders()
        assert there == named  # no repo made or deleted by halves
        if n % 20 == 0:
            proof.all_whole()
        assert [w.wrong for w in writers if w.wrong] == []
    nursery.over = True
    nursery.gate.set()
    for w in writers:
        w.join(30)
    proof.told(recent=False)
    proof.all_whole()
    for row in folder.all("SELECT id FROM repos"):
        folder.look(row["id"])
        folder.agree(ask, row["id"])
    assert folder.all("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    nursery.kill()
    nursery.start()
    assert not list((nursery.data / "lfs/tmp").iterdir())  # what the killed had begun is swept away
    done = {type(w).__name__: (w.counts["done"], w.counts["cut off"]) for w in writers}
    print(f"{KILLS} kills; rounds (finished, cut off): {done}; {sum(w.acks for w in writers)} acknowledged writes; "
          f"start to first answer {statistics.median(nursery.starts):.3f} s, at most {max(nursery.starts):.3f} s")
    assert all(min(c) > 0 for c in done.values()) and statistics.median(nursery.starts) < 2
    nursery.kill()


def test_two_writers_on_one_parent(nursery, data):
    """One wins, the others are told to look again."""
    nursery.start(data)
    clients = [Client(nursery) for _ in range(4)]
    head = clients[0]("POST", "/api/repos/create", dict(name="r")) and clients[0]("GET", "/api/models/you/r")[1]["sha"]
    answers, start = {}, threading.Barrier(len(clients))

    def write(i, n, parent):
        start.wait()
        answers[i] = clients[i]("POST", "/api/models/you/r/commit/main", commit_body(f"{n} by {i}", {f"{n}.txt": b"%d" % i}, parent=parent))

    for n in range(40):
        threads = [threading.Thread(target=write, args=(i, n, head)) for i in range(len(clients))]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert sorted(status for status, _ in answers.values()) == [200, 412, 412, 412]
        winner, = [i for i, (status, _) in answers.items() if status == 200]
        head = answers[winner][1]["commitOid"]
        assert clients[0]("GET", f"/you/r/resolve/main/{n}.txt")[1] == b"%d" % winner
        assert all("refresh" in answers[i][1]["error"] for i in answers if i != winner)
    commits = clients[0]("GET", "/api/models/you/r/commits/main?limit=100")[1]
    assert len(commits) == 41 and commits[0]["id"] == head
    nursery.kill()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A Hub in this process, whose disk can be full."""
    with running(tmp_path_factory.mktemp("full") / "data", [f"{n}:{t}" for n, t in TOKENS.items()], limits=Limits(part=1 << 20)) as (url, hub):
        yield SimpleNamespace(url=url, data=hub.data, hub=hub, gate=None)


@pytest.mark.parametrize("op", [SmallCommit, LargeCommit, LfsUpload, LfsCommit, Multipart, CreateRepo, Duplicate, CommitPullRequest, CommitToPullRequest, Push], ids=lambda op: op.__name__)
def test_a_full_disk_leaves_nothing_half_done(here, op, monkeypatch):
    """Each write to the disk fails once: the caller is told, nothing has changed, and the next try works."""
    client, folder, fail = Client(here), Folder(here.data), SimpleNamespace(left=None)

    def failing(f):
        def g(*args, **kw):
            if fail.left is not None:
                fail.left -= 1
                if fail.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return f(*args, **kw)
        return g

    for f in ("fsync", "replace"):
        monkeypatch.setattr(os, f, failing(getattr(os, f)))
    name = f"full-{op.__name__}"
    client("POST", "/api/repos/create", dict(name=name))
    o = op(client, f"you/{name}")
    o.commit(summary="First", files={"old.txt": b"old", "d/old.txt": b"old"})
    o.prepare()
    before = folder.look(o.repo)
    for n in itertools.count():
        fail.left = n
        status, answer = o.act({})
        fail.left = None
        if status < 300:
            break
        assert status == 507 and "full" in answer["error"]
        assert folder.look(o.repo) == before and not list((here.data / "lfs/tmp").iterdir())
        if isinstance(o, Multipart):
            o.prepare()  # the parts are gone with the failed attempt
    assert n > 0 and folder.look(o.repo) != before


def test_a_full_database_changes_nothing_and_does_not_stay_locked(here, monkeypatch):
    client, folder = Client(here), Folder(here.data)
    client("POST", "/api/repos/create", dict(name="pages"))
    o = Op(client, "you/pages")
    o.pull_request()
    before, pages, connect = folder.look(o.repo), folder.all("PRAGMA page_count")[0]["page_count"], sqlite3.connect

    def small(*args, **kw):
        db = connect(*args, **kw)
        db.execute(f"PRAGMA max_page_count={pages}")
        return db

    with monkeypatch.context() as m:
        m.setattr(sqlite3, "connect", small)
        m.setattr(here.hub.db, "_local", threading.local())
        for _ in range(3):
            text = "x" * 60_000
            for act in (lambda: client("POST", f"{o.api}/discussions/1/comment", dict(comment=text)), lambda: client("POST", f"{o.api}/discussions/1/merge", dict(comment=text)),
                        lambda: client("POST", f"{o.api}/commit/main?create_pr=1", commit_body("x", {"a": b"1"}) .replace('"summary": "x"', f'"summary": "x", "description": "{text}"'))):
                status, answer = act()
                assert status == 507 and "full" in answer["error"] and folder.look(o.repo) == before
    assert client("POST", f"{o.api}/discussions/1/merge", {})[0] == 200
    assert folder.look(o.repo)[""]["talk"][1][1] == "merged"


def test_of_two_who_make_the_same_one_is_told(here):
    """The loser gets a 4xx that says so, and nothing is there twice."""
    clients, answers, start = [Client(here) for _ in range(4)], {}, threading.Barrier(4)

    def ask(i, what):
        start.wait()
        answers[i] = clients[i](*what)[0]

    clients[0]("POST", "/api/repos/create", dict(name="same"))
    slug = clients[0]("POST", "/api/collections", dict(title="Same"))[1]["slug"]
    api = "/api/models/you/same"
    for n in range(8):
        for what in (("POST", "/api/repos/create", dict(name=f"same{n}")), ("POST", f"{api}/branch/b{n}", {}), ("POST", f"{api}/tag/main", dict(tag=f"t{n}")), ("POST", "/api/collections", dict(title=f"Same {n}")),
                     ("POST", f"/api/collections/{slug}/items", dict(item=dict(type="model", id=f"you/same{n}")))):
            threads = [threading.Thread(target=ask, args=(i, what)) for i in range(4)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            assert sorted(answers.values())[1:] == [409] * 3 and min(answers.values()) < 300, (what, answers)
