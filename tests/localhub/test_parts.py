"""Large uploads in parts, and lists page by page: what the official client would not try."""
import os
import shutil
import socket
import subprocess
from hashlib import sha256
from urllib.parse import urlsplit

import pygit2
import pytest
from huggingface_hub import CommitOperationAdd

from hfflow.localhub.commit import Blobs
from hfflow.localhub.store import Repo, bare
from hfflow.localhub.upload import Parts

STEP = 64 << 20


def test_nobody_writes_into_a_file_that_was_checked(http, repo):
    size, head = STEP + 10, os.urandom(10)
    data = bytes(STEP) + head
    oid = sha256(data).hexdigest()
    batch = dict(operation="upload", transfers=["multipart"], objects=[dict(oid=oid, size=size)])
    up = http.post(f"/{repo}.git/info/lfs/objects/batch", json=batch).json()["objects"][0]["actions"]["upload"]
    at = urlsplit(up["header"]["2"])
    slow = socket.create_connection((at.hostname, at.port))
    slow.sendall(f"PUT {at.path}?{at.query} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: 10\r\n\r\n".encode() + b"evil")
    for i, piece in ((1, data[:STEP]), (2, head)): assert http.put(up["header"][str(i)], content=piece).status_code == 200
    done = lambda: http.post(up["href"], json=dict(oid=oid, parts=[dict(partNumber=i, etag="x") for i in (1, 2)]))
    assert done().status_code == 503                       # the slow one could still write
    slow.sendall(b" bytes")
    assert b" 200 " in slow.recv(1000)
    slow.close()
    assert done().status_code == 400                       # it did, so the whole has another hash
    assert http.put(up["header"]["1"], content=data[:STEP]).status_code == 200
    assert http.put(up["header"]["2"], content=head).status_code == 200
    assert done().status_code == 200


def test_the_hash_grows_only_with_parts_that_come_in_order():
    def run(*parts):
        p = Parts()
        for i, data in parts:
            with p.part(i) as h: h and h.update(data)
        return p.close(2)
    good = sha256(b"ab").hexdigest()
    assert run((1, b"a"), (2, b"b")) == good
    assert run((2, b"b"), (1, b"a")) is None and run((1, b"a"), (1, b"a"), (2, b"b")) is None and run((1, b"a")) is None
    p = Parts()
    with pytest.raises(OSError), p.part(1) as h:           # a part that breaks off and comes again
        h.update(b"x")
        raise OSError
    for i, data in ((1, b"a"), (2, b"b")):
        with p.part(i) as h: h.update(data)
    assert p.close(2) == good
    p = Parts()
    with p.part(1), p.part(1) as second: assert second is None
    assert p.close(1) is None


@pytest.mark.parametrize("recursive", [False, True])
def test_a_list_goes_on_where_it_ended(api, http, repo, recursive):
    names = ["a", "a.txt", "a/b", "a-b", "ab/c/d", "ab/c.x", "ä/ö", "a0", "z/" + "y" * 20]
    api.create_commit(repo, [CommitOperationAdd(f"{n}.t", n.encode()) for n in names], commit_message="files")
    path = f"/api/models/{repo}/tree/main?recursive={str(recursive).lower()}"
    whole = [e["path"] for e in http.get(path).json()]
    assert ("ab/c/d.t" in whole) is recursive
    for limit in (1, 2, 5):
        url, seen = f"{path}&limit={limit}", []
        while url:
            r = http.get(url)
            seen += [e["path"] for e in r.json()]
            url = r.links.get("next", {}).get("url")
        assert seen == whole
    for cursor in ("/x", "a//b", "nowhere", "%00", "a.txt.t/x/", "ab/c/zzz"):
        assert http.get(f"{path}&cursor={cursor}").status_code in (200, 400)


def test_last_commits_in_folders_and_at_the_root(api, repo):
    for i, paths in enumerate((["a.txt", "d/x.txt", "d/e/y.txt"], ["d/x.txt"], ["a.txt", "d/e/z.txt"])):
        api.create_commit(repo, [CommitOperationAdd(p, f"{i}".encode()) for p in paths], commit_message=f"c{i}")
    last = {e.path: e.last_commit.title for e in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert {k: v for k, v in last.items() if k != ".gitattributes"} == {
        "a.txt": "c2", "d": "c2", "d/x.txt": "c1", "d/e": "c2", "d/e/y.txt": "c0", "d/e/z.txt": "c2"}


def test_packs_of_every_size_are_read_by_git(tmp_path):
    git = bare(tmp_path / "x.git")
    sizes = [0, 1, 15, 16, 127, 128, 2047, 2048, 2049, 40_000, 300_000]
    data = [str(i).encode() for i in range(300)] + [b"299"] + [os.urandom(s) for s in sizes] + [b"last"]
    with Blobs(Repo(tmp_path / "x.git"), most=100_000) as blobs: oids = [blobs.add(d) for d in data]
    assert [git[o].data for o in oids] == data and oids == [str(pygit2.hash(d)) for d in data]
    packs = sorted(map(str, (tmp_path / "x.git/objects/pack").glob("*.idx")))
    assert len(packs) == 2
    if shutil.which("git"): subprocess.run(["git", "verify-pack", *packs], check=True)
