"""Crashes, hostile input, ports and folders that are taken."""
import base64
import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
import time

import httpx
import pytest
from hub_process import TOKENS, Server

AUTH = {"Authorization": f"Bearer {TOKENS['you']}"}


def commit_body(files, summary="x", parent=None):
    head = dict(key="header", value=dict(summary=summary) | (dict(parentCommit=parent) if parent else {}))
    return "\n".join(json.dumps(d) for d in [head, *[dict(key="file", value=dict(path=p, content=base64.b64encode(c).decode())) for p, c in files.items()]])


def test_a_lock_left_behind_does_not_block(tmp_path):
    s = Server(tmp_path)
    with httpx.Client(base_url=s.url, headers=AUTH, trust_env=False) as c:
        key = c.post("/api/repos/create", json=dict(name="r")).json()["id"]
    s.kill()
    (tmp_path / f"repos/{key[:2]}/{key}.git/refs/heads/main.lock").touch()
    s = Server(tmp_path)
    with httpx.Client(base_url=s.url, headers=AUTH, trust_env=False) as c:
        assert c.post("/api/models/you/r/commit/main", content=commit_body({"a": b"1"})).status_code == 200
    s.stop()


def test_port_and_folder_taken(server, tmp_path):
    port = server.url.rsplit(":", 1)[1]
    for args in (["--data", str(tmp_path), "--port", port], ["--data", str(server.data)], ["--data", str(tmp_path), "--user", "x"], ["--data", str(tmp_path), "--org", "o:absent"], ["--data", "/proc/nope/x"]):
        r = subprocess.run([sys.executable, "-m", "hfflow.localhub", *args], capture_output=True, text=True, timeout=30)
        assert r.returncode == 2 and r.stdout == "" and len(r.stderr.strip().splitlines()) == 1, r.stderr


def test_tokens_are_not_stored_in_clear(server):
    for f in server.data.rglob("*"):
        if f.is_file():
            data = f.read_bytes()
            assert not any(t.encode() in data for t in TOKENS.values()), f
    with sqlite3.connect(f"file:{server.data}/hub.sqlite3?mode=ro", uri=True) as db:
        assert all(len(h) == 64 for (h,) in db.execute("select hash from tokens"))


def test_wrong_bytes_are_refused(server, http, repo):
    data = b"\0right" * 1000
    sha = hashlib.sha256(data).hexdigest()
    o = http.post(f"/{repo}.git/info/lfs/objects/batch", json=dict(operation="upload", transfers=["basic"], objects=[dict(oid=sha, size=len(data))])).json()["objects"][0]
    href = o["actions"]["upload"]["href"]
    for bad in (b"\0wrong" * 1000, data[:-1], data + b"x"):
        assert http.put(href, content=bad).status_code in (400, 413)
    assert http.put(href.replace("sig=", "sig=0"), content=data).status_code == 403
    assert http.put(href.replace(sha, "0" * 64, 1), content=data).status_code == 403
    assert http.post(f"/{repo}.git/info/lfs/verify", json=dict(oid=sha, size=len(data))).status_code == 404
    lines = [dict(key="header", value=dict(summary="x")), dict(key="lfsFile", value=dict(path="w.bin", algo="sha256", oid=sha, size=len(data)))]
    assert http.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines))).status_code == 400
    assert not list((server.data / "lfs/tmp").iterdir()) and not (server.data / "lfs/objects" / sha[:2] / sha[2:4] / sha).exists()
    httpx.put(href, content=data, trust_env=False).raise_for_status()
    assert http.post(f"/{repo}.git/info/lfs/verify", json=dict(oid=sha, size=len(data))).status_code == 200


BAD_PATHS = ["../x", "/x", "a/../../x", "a//b", ".", "..", ".git/config", "a/.GIT/hooks/x", "a/.git", "x\0y", "..\\b", "\\b", "C:\\b", "", "a/", "x" * 300, "\ud800", 5, None, ["a"], "a\nb"]


def test_no_path_leaves_the_repo(server, http, repo):
    for p in BAD_PATHS:
        for key in ("file", "lfsFile", "deletedFile", "deletedFolder"):
            line = dict(key=key, value=dict(path=p, content="", encoding="base64", algo="sha256", oid="0" * 64, size=1))
            r = http.post(f"/api/models/{repo}/commit/main", content=json.dumps(dict(key="header", value=dict(summary="x"))) + "\n" + json.dumps(line))
            assert 400 <= r.status_code < 500, (p, key, r.text)
    for p in ("..%2f..%2fhub.sqlite3", "%2e%2e/%2e%2e/hub.sqlite3", "%2fetc%2fpasswd", "a%00b", "%ff%fe", "....//x", "%5c..%5cx"):
        for u in (f"/{repo}/resolve/main/{p}", f"/{repo}/resolve/{p}/x", f"/api/models/{repo}/tree/main/{p}", f"/api/models/{repo}/tree/{p}", f"/{repo}/blob/main/{p}", f"/static/{p}", f"/api/models/{p}/{p}", f"/{repo}/raw/main/{p}"):
            r = http.get(u)
            assert 400 <= r.status_code < 500, (u, r.status_code)


JUNK = [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{" * 2000, b"[" * 100_000, b'{"a":' * 3000, b'{"name":5}', b'{"name":"../x"}', b'{"name":"a--b"}', b'{"name":"a","organization":[]}', b'{"files":[{"path":5}]}',
        b'{"files":[5]}', b'{"objects":[5],"operation":"upload"}', b'{"operation":"upload","objects":[{"oid":"x","size":-1}]}', b'{"key":"header"}', b'{"key":"header","value":{"summary":"x"}}\nnonsense', b"\n\n\n", b'{"key":"file","value":{"path":"a","content":"!!"}}',
        b'{"key":"header","value":{"summary":"\\ud800"}}', b'{"key":"header","value":{"summary":"x","parentCommit":5}}', b'{"files":[{"path":"\\ud800","size":1}]}', b'{"tag":"\\ud800"}', b'{"tag":"a/../b"}', b'{"visibility":7}', b'{"gated":{}}', b'{"content":5}', b'{"startingPoint":5}', b"paths=%ff&paths=" + b"a/" * 500, b"&" * 300_000]


def test_hostile_bodies(http, repo):
    paths = ["/api/repos/create", "/api/repos/move", "/api/validate-yaml", f"/{repo}.git/info/lfs/objects/batch", f"/{repo}.git/info/lfs/verify", "/lfs/" + "0" * 64, "/login", f"/api/models/{repo}/user-access-request/grant"]
    paths += [f"/api/models/{repo}/{p}" for p in ("preupload/main", "commit/main", "commit/absent", "paths-info/main", "branch/x", "tag/main", "super-squash/absent", "like")]
    for p in paths:
        for body in JUNK:
            r = http.post(p, content=body)
            assert r.status_code < 500, (p, body[:50], r.status_code, r.text[:200])
    for p in (f"/api/models/{repo}/settings",):
        for body in JUNK:
            assert http.put(p, content=body).status_code < 500
    for q in ("limit=x", "limit=-1", "cursor=x", "cursor=W10=", "cursor=eyI", "sort=x", "filter=" + "a," * 500, "num_parameters=min:x", "search=%25%5C'\"", "expand=x", "p=99999999999999", "search=" + "a%20" * 400, "filter=%00"):
        for u in ("/api/models", "/models", f"/api/models/{repo}/commits/main", f"/api/models/{repo}/tree/main", "/search", f"/{repo}/tree/main"):
            assert http.get(f"{u}?{q}").status_code < 500, (u, q)
    for h in ({"Authorization": "Basic !!!"}, {"Authorization": "Bearer"}, {"Authorization": "x"}, {"Cookie": "hub=you:99999999999:00"}, {"Cookie": "hub=::::"}, {"Range": "bytes=-"}, {"Range": "bytes=9-1"}, {"Range": "x"}, {"Range": "bytes=" + "9" * 30 + "-"}, {"Host": "evil.example"}):
        for u in ("/api/whoami-v2", f"/{repo}/resolve/main/.gitattributes", "/"):
            assert http.get(u, headers=h).status_code < 500
    assert http.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert http.get("/api/models").status_code == 200


def test_hostile_cards(http, repo):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))
    for front in (bomb, "a: &a [*a]", "tags: {x: [1,2]}\nlicense: [[1]]", "license: 2024-01-01\n? [1, 2]\n: x", "x: .nan\ny: .inf\nz: " + "9" * 400, "[" * 3000, "model-index: [[[]]]\nlanguage: {a: b}\nbase_model: {x: y}", "datasets: 5\npipeline_tag: [1]\nsdk: {}", "!!python/object/apply:os.system ['x']", "tags: [\"\\ud800\"]"):
        text = f"---\n{front}\n---\n# x\n" + "[" * 2000 + ">" * 500
        r = http.post(f"/api/models/{repo}/commit/main", content=commit_body({"README.md": text.encode(), "config.json": b'{"architectures": {"a": 1}, "model_type": [1]}', "model_index.json": b"[", "lineage.json": b'{"inputs": [1, {"kind": [], "repo_id": 1}, {"kind": "model", "repo_id": "a/b/c"}], "code": {"x": []}}'}))
        assert r.status_code == 200, r.text
        for u in (f"/{repo}", f"/api/models/{repo}", "/api/models", f"/{repo}/blob/main/README.md", "/models"):
            assert http.get(u).status_code == 200, (front[:40], u)
        assert http.post("/api/validate-yaml", json=dict(content=text)).status_code in (200, 400)


def test_large_upload_does_not_fill_memory(server, http, repo):
    psutil = pytest.importorskip("psutil")
    me = psutil.Process(server.process.pid)
    n, chunk = 200, bytes(range(256)) * 4096
    h = hashlib.sha256()
    for _ in range(n):
        h.update(chunk)
    size, sha = n * len(chunk), h.hexdigest()
    o = http.post(f"/{repo}.git/info/lfs/objects/batch", json=dict(operation="upload", transfers=["basic"], objects=[dict(oid=sha, size=size)])).json()["objects"][0]
    before, peak, stop = me.memory_info().rss, [0], threading.Event()

    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], me.memory_info().rss)

    t = threading.Thread(target=watch)
    t.start()
    http.put(o["actions"]["upload"]["href"], content=(chunk for _ in range(n))).raise_for_status()
    line = json.dumps(dict(key="lfsFile", value=dict(path="big.bin", algo="sha256", oid=sha, size=size)))
    http.post(f"/api/models/{repo}/commit/main", content=commit_body({}) + "\n" + line).raise_for_status()
    got = hashlib.sha256()
    with http.stream("GET", f"/{repo}/resolve/main/big.bin") as r:
        for c in r.iter_bytes():
            got.update(c)
    stop.set()
    t.join()
    assert got.hexdigest() == sha and peak[0] - before < 100e6
