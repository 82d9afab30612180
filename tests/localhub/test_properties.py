"""Properties that hold for any input: a repo behaves like a dict of files, and what it writes is what git reads."""
import base64
import hashlib
import json
import os
import shutil
import subprocess

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from hfflow.localhub.commit import _tracked, check_path, matches, wants_lfs
from hfflow.localhub.server import running
from hfflow.localhub.store import HubError, Repo, bare
from hub_process import TOKENS

MORE = int(os.environ.get("HFFLOW_FUZZ", 0))


def examples(n, **kw):
    return settings(max_examples=MORE or n, derandomize=not MORE, deadline=None, database=None, suppress_health_check=list(HealthCheck), **kw)


def blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running(tmp_path_factory.mktemp("properties"), [f"{n}:{t}" for n, t in TOKENS.items()]) as (url, hub):
        hub.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKENS['you']}"}, trust_env=False, timeout=30)
        yield hub
        hub.client.close()


names = st.sampled_from(["a", "b", "c.txt", "é", "d e", "%41", "x#y?z", "<b>", "'\"", "\u202ex", "A", "[1]", "*", "a.", "-r", "~", "^1", "@{1}"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
contents = st.one_of(st.sampled_from([b"", b"\0", b"one\n", b"two\n"]), st.binary(max_size=40))


class RepoMachine(RuleBasedStateMachine):
    """A repo beside a model of it: for each ref, a list of commits, each a dict of files."""

    count = 0

    @initialize()
    def start(self):
        RepoMachine.count += 1
        self.name, self.c = f"r{RepoMachine.count}", self.hub.client
        self.api = f"/api/models/you/{self.name}"
        self.ok(self.c.post("/api/repos/create", json=dict(name=self.name)))
        self.attributes = self.c.get(f"/you/{self.name}/resolve/main/.gitattributes").content
        self.refs, self.tags, self.n, self.lfs = {"main": [("initial commit", {".gitattributes": self.attributes})]}, {}, 0, {}

    def ok(self, r, *status):
        assert r.status_code in (status or (200, 201)), (r.request.url, r.status_code, r.text)
        return r

    def pick(self, data, what):
        return data.draw(st.sampled_from(sorted(what)))

    @rule(data=st.data(), add=st.dictionaries(paths, contents, max_size=3), stale=st.booleans())
    def commit(self, data, add, stale):
        branch = self.pick(data, self.refs)
        old = dict(self.refs[branch][-1][1])
        folders = sorted({p.rsplit("/", i)[0] for p in old for i in range(1, p.count("/") + 1)})
        gone = data.draw(st.lists(st.sampled_from(sorted(set(old) - {".gitattributes"})), max_size=2, unique=True)) if len(old) > 1 else []
        emptied = data.draw(st.lists(st.sampled_from(folders), max_size=1)) if folders else []
        renamed = data.draw(st.lists(st.tuples(st.sampled_from(sorted(set(old) - {".gitattributes"})), paths), max_size=1)) if len(old) > 1 else []
        add = dict(add) | {new: old[p] for p, new in renamed}
        gone = sorted({*gone, *(p for p, _ in renamed)} - {p for p in old for f in emptied if p.startswith(f + "/")})
        new = {p: b for p, b in old.items() if p not in gone and not any(p.startswith(f + "/") for f in emptied)} | add
        self.n += 1
        lines = [dict(key="header", value=dict(summary=f"c{self.n}", **(dict(parentCommit="0" * 40) if stale else {})))]
        lines += [dict(key="deletedFile", value=dict(path=p)) for p in gone] + [dict(key="deletedFolder", value=dict(path=f + "/")) for f in emptied]
        lines += [dict(key="file", value=dict(path=p, content=base64.b64encode(b).decode())) for p, b in add.items()]
        r = self.c.post(f"{self.api}/commit/{branch.replace('/', '%2F')}", content="\n".join(map(json.dumps, lines)))
        clash = any(q.startswith(p + "/") for p in new for q in new)
        if stale:
            self.ok(r, 412)
        elif clash:
            self.ok(r, 400)
        else:
            self.ok(r)
            self.refs[branch] = [*self.refs[branch], (f"c{self.n}", new)]

    @rule(data=st.data(), path=paths, content=st.binary(min_size=1, max_size=30))
    def large_file(self, data, path, content):
        branch, path, content = self.pick(data, self.refs), f"large/{path}.bin", b"\0" + content
        oid = hashlib.sha256(content).hexdigest()
        batch = self.ok(self.c.post(f"/you/{self.name}.git/info/lfs/objects/batch", json=dict(operation="upload", objects=[dict(oid=oid, size=len(content))]))).json()
        if actions := batch["objects"][0].get("actions"):
            self.ok(self.c.put(actions["upload"]["href"], content=content))
        old, self.n = self.refs[branch][-1][1], self.n + 1
        lines = [dict(key="header", value=dict(summary=f"c{self.n}")), dict(key="lfsFile", value=dict(path=path, algo="sha256", oid=oid, size=len(content)))]
        r = self.c.post(f"{self.api}/commit/{branch.replace('/', '%2F')}", content="\n".join(map(json.dumps, lines)))
        if any(q.startswith(path + "/") or path.startswith(q + "/") for q in old):
            self.ok(r, 400)
            return
        self.ok(r)
        self.lfs[content] = oid
        self.refs[branch] = [*self.refs[branch], (f"c{self.n}", old | {path: content})]

    @rule(data=st.data(), name=st.sampled_from(["dev", "x/y", "x", "main"]))
    def branch(self, data, name):
        start = self.pick(data, self.refs)
        r = self.c.post(f"{self.api}/branch/{name.replace('/', '%2F')}", json=dict(startingPoint=start))
        if name in self.refs or any(b.startswith(name + "/") or name.startswith(b + "/") for b in self.refs):
            self.ok(r, 409)
            return
        self.ok(r)
        self.refs[name] = self.refs[start]

    @rule(data=st.data())
    def delete_branch(self, data):
        name = self.pick(data, self.refs)
        self.ok(self.c.delete(f"{self.api}/branch/{name.replace('/', '%2F')}"), 403 if name == "main" else 200)
        if name != "main":
            del self.refs[name]

    @rule(data=st.data(), name=st.sampled_from(["v1", "v2"]), message=st.sampled_from([None, "A message"]))
    def tag(self, data, name, message):
        branch = self.pick(data, self.refs)
        r = self.c.post(f"{self.api}/tag/{branch.replace('/', '%2F')}", json=dict(tag=name, message=message))
        self.ok(r, 409 if name in self.tags else 201)
        self.tags.setdefault(name, self.refs[branch])

    @rule(data=st.data())
    def squash(self, data):
        branch = self.pick(data, self.refs)
        self.n += 1
        self.ok(self.c.post(f"{self.api}/super-squash/{branch.replace('/', '%2F')}", json=dict(message=f"c{self.n}")))
        self.refs[branch] = [(f"c{self.n}", self.refs[branch][-1][1])]

    @precondition(lambda self: hasattr(self, "name"))
    @invariant()
    def the_same(self):
        got = self.ok(self.c.get(f"{self.api}/refs")).json()
        assert {b["name"] for b in got["branches"]} == set(self.refs) and {t["name"] for t in got["tags"]} == set(self.tags)
        for name, commits in [*self.refs.items(), *self.tags.items()]:
            rev, (_, files) = name.replace("/", "%2F"), commits[-1]
            assert [c["title"] for c in self.ok(self.c.get(f"{self.api}/commits/{rev}?limit=100")).json()] == [title for title, _ in commits[::-1]]
            entries = {e["path"]: e for e in self.ok(self.c.get(f"{self.api}/tree/{rev}?recursive=true")).json()}
            attributes = self.c.get(f"/you/{self.name}/resolve/{rev}/.gitattributes")
            for path, content in files.items():
                e = entries.pop(path)
                if path == ".gitattributes":
                    assert attributes.content.startswith(self.attributes)  # lines for large files are appended
                elif content in self.lfs and e.get("lfs"):
                    assert (e["lfs"]["oid"], e["size"]) == (self.lfs[content], len(content))
                else:
                    assert (e["oid"], e["size"]) == (blob(content), len(content))
            assert all(e["type"] == "directory" and any(p.startswith(path + "/") for p in files) for path, e in entries.items())

    def teardown(self):
        if not hasattr(self, "name"):
            return
        for name, commits in self.refs.items():
            files = {p: b for p, b in commits[-1][1].items() if p != ".gitattributes"}
            rev = name.replace("/", "%2F")
            found = self.ok(self.c.post(f"{self.api}/paths-info/{rev}", json=dict(paths=[*files, "absent"]))).json()
            assert {e["path"] for e in found} == set(files)
            for path, content in list(files.items())[:5]:
                r = self.c.get(f"/you/{self.name}/resolve/{rev}/" + "".join(f"%{b:02X}" for b in path.encode()))
                assert r.content == content
        key = self.hub.db.find("model", f"you/{self.name}").key
        assert self.hub.db.find("model", f"you/{self.name}").sha == str(self.hub.store.open(key).resolve("main").id)
        fsck = subprocess.run(["git", "--git-dir", str(self.hub.store.path(key)), "fsck", "--full", "--strict", "--no-dangling"], capture_output=True, text=True)
        assert fsck.returncode == 0 and fsck.stderr == "", fsck.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_repo_is_a_dict_of_files(hub):
    class Machine(RepoMachine):
        pass

    Machine.hub = hub
    run_state_machine_as_test(Machine, settings=examples(12, stateful_step_count=12))


any_path = st.one_of(paths, st.text(max_size=30), st.lists(st.one_of(names, st.text(max_size=5), st.sampled_from(["..", ".", ".git", ".GIT", ".git.", "git~1", "", " ", "\\", "a" * 256])), min_size=1, max_size=4).map("/".join))


@examples(300)
@given(any_path)
def test_a_path_is_refused_or_stays_in_its_repo(tmp_path_factory, path):
    try:
        check_path(path)
    except HubError as e:
        assert e.status == 422 and e.message.encode()
        return
    parts = path.split("/")
    assert os.path.normpath(path) == path and not path.startswith("/") and ".." not in parts and not any(ord(c) < 32 for c in path)
    assert not any(p.lower().rstrip(". ") == ".git" for p in parts)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_gitattributes_say_to_git_what_they_say_to_us(tmp_path):
    """A line that the Hub adds for a large file covers that file, for the Hub and for git."""
    repo = Repo(bare(tmp_path / "r.git").path)
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    empty = repo.git.TreeBuilder().write()

    def valid(path):
        try:
            return bool(check_path(path))
        except HubError:
            return False

    first = st.sampled_from(["#", "!", '"', "[", " ", "*", "\u2028", "\x85", "\xa0", "é", "^", "[^a]", "a b", "~", "]", "**", "?"])
    special = st.tuples(first, names).map("".join)

    @examples(40)
    @given(st.lists(st.one_of(paths, special, st.tuples(names, special).map("/".join), st.text(min_size=1, max_size=10)).filter(valid), min_size=1, max_size=5, unique=True))
    def check(large):
        tree = repo.git[_tracked(repo, empty, large)]
        text = tree[".gitattributes"].data.decode()
        assert all(wants_lfs(text, p) for p in large), (text, large)
        assert _tracked(repo, tree.id, large) == tree.id  # nothing is added twice
        (work / ".gitattributes").write_bytes(text.encode())
        out = subprocess.run(["git", "check-attr", "-z", "--stdin", "filter"], cwd=work, input="\0".join(large).encode(), capture_output=True, check=True).stdout.split(b"\0")
        assert dict(zip(out[::3], out[2::3])) == {p.encode(): b"lfs" for p in large}, text

    check()


@examples(200)
@given(st.text(alphabet="ab*?/[]!\\.", max_size=12), st.text(alphabet="ab/.", min_size=1, max_size=12))
def test_any_pattern_is_answered(pattern, path):
    assert matches(pattern, path) in (True, False)
