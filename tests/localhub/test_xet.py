"""Xet, through the official client with Xet on, against a Hub in a process of its own."""
import hashlib
import io
import json
import random
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_process import TOKENS
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, constants
from huggingface_hub.errors import HfHubHTTPError

pytest.importorskip("hf_xet")
from hfflow.localhub.chunks import CHUNK, TERM, Chunks, File, chunk_hash, file_hash, from_hex, to_hex, xorb_hash  # noqa: E402
from hfflow.localhub.people import Db  # noqa: E402
from hfflow.localhub.server import running  # noqa: E402
from hfflow.localhub.store import HubError, Store  # noqa: E402
from hfflow.localhub.xet import _tag, cut_terms, read_shard, runs  # noqa: E402


@pytest.fixture(autouse=True)
def xet_on(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)


def noise(n, seed): return random.Random(seed).randbytes(n)


def at_rest(server): return sum(f.stat().st_size for f in (server.data / "xet").rglob("*") if f.is_file())


def get(api, repo, path, **kw): return Path(api.hf_hub_download(repo, path, force_download=True, **kw)).read_bytes()


def token(http, repo, op="write", who="you", kind="models"):
    r = http.get(f"/api/{kind}/{repo}/xet-{op}-token/main", headers={"Authorization": f"Bearer {TOKENS[who]}"} if who else {"Authorization": ""})
    return r.json() if r.status_code == 200 else r


def cas(http, t, method, path, **kw):
    return http.request(method, t["casUrl"] + path, headers={"Authorization": f"Bearer {t['accessToken']}", **kw.pop("headers", {})}, **kw)


# A xorb and a shard as a client writes them

def pack(data, size=None): return b"\0" + len(data).to_bytes(3, "little") + b"\0" + (len(data) if size is None else size).to_bytes(3, "little") + data


def xorb_of(parts): return to_hex(xorb_hash((chunk_hash(p), len(p)) for p in parts)), b"".join(map(pack, parts))


def shard_of(*files):
    rows = [_tag, struct.pack("<QQ", 2, 0)]
    for hash, terms, oid in files:
        rows += [struct.pack("<32sII8x", hash, 1 << 30 if oid else 0, len(terms) // 48), terms, from_hex(oid) + bytes(16) if oid else b""]
    return b"".join(rows) + (b"\xff" * 32 + bytes(16)) * 2


def file_of(parts, xorb, at=None):
    at = range(len(parts)) if at is None else at
    terms = b"".join(TERM.pack(from_hex(xorb), len(p), i, i + 1) for i, p in zip(at, parts))
    return file_hash((chunk_hash(p), len(p)) for p in parts), terms, hashlib.sha256(b"".join(parts)).hexdigest()


# The official client

def test_a_new_version_costs_its_changed_chunks(api, apis, repo, server):
    old = noise(6_000_000, repo)
    new = old[:3_000_000] + b"a few bytes more" + old[3_000_000:]
    before = at_rest(server)
    first = api.upload_file(path_or_fileobj=old, path_in_repo="w.bin", repo_id=repo).oid
    one = at_rest(server) - before
    assert len(old) < one < len(old) * 1.01
    api.upload_file(path_or_fileobj=new, path_in_repo="w.bin", repo_id=repo)
    assert 0 < at_rest(server) - before - one < 400_000
    nobody = apis["nobody"]
    assert (get(nobody, repo, "w.bin") == new, get(nobody, repo, "w.bin", revision=first) == old) == (True, True)
    assert list(server.data.glob("lfs/tmp/*")) == []


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_kinds_pull_requests_and_private_repos(api, apis, repo, kind):
    name, kw = repo + kind[0], dict(repo_type=kind)
    api.create_repo(name, private=True, space_sdk="static" if kind == "space" else None, **kw)
    data = noise(200_000, name)
    api.create_commit(name, [CommitOperationAdd("a.bin", data), CommitOperationAdd("b/c.bin", data[::-1])], commit_message="x", **kw)
    assert get(api, name, "b/c.bin", **kw) == data[::-1]
    with pytest.raises(ValueError, match="Force download"):
        get(apis["ann"], name, "a.bin", **kw)
    with pytest.raises((HfHubHTTPError, ConnectionError)):
        apis["ann"].upload_file(path_or_fileobj=data, path_in_repo="x.bin", repo_id=name, **kw)
    api.update_repo_settings(name, private=False, **kw)
    pr = apis["ann"].upload_file(path_or_fileobj=data + b"!", path_in_repo="a.bin", repo_id=name, create_pr=True, **kw)
    assert get(api, name, "a.bin", revision=pr.pr_revision, **kw) == data + b"!"
    apis["ann"].upload_file(path_or_fileobj=data + b"?", path_in_repo="a.bin", repo_id=name, revision=pr.pr_revision, **kw)
    api.merge_pull_request(name, pr.pr_num, **kw)
    assert get(apis["nobody"], name, "a.bin", **kw) == data + b"?"


def test_folders_snapshots_and_the_same_content_twice(api, repo, server, tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.bin").write_bytes(noise(20_000, f"{repo} {i}"))
    (tmp_path / "twin.bin").write_bytes((tmp_path / "0.bin").read_bytes())
    (tmp_path / "note.txt").write_text("small")
    before = at_rest(server)
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert 600_000 < at_rest(server) - before < 650_000
    got = Path(api.snapshot_download(repo))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in got.iterdir() if p.name != ".gitattributes"}
    entries = {e.path: e for e in api.list_repo_tree(repo)}
    assert entries["0.bin"].xet_hash == entries["twin.bin"].xet_hash != entries["1.bin"].xet_hash and entries["note.txt"].xet_hash is None


def test_xet_and_lfs_see_each_others_files(api, repo, monkeypatch, http):
    data = noise(500_000, repo)
    api.upload_file(path_or_fileobj=data, path_in_repo="xet.bin", repo_id=repo)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert get(api, repo, "xet.bin") == data
    r = http.get(f"/{repo}/resolve/main/xet.bin", headers={"Range": "bytes=131000-140000"})
    assert (r.status_code, r.content) == (206, data[131000:140001])
    api.upload_file(path_or_fileobj=data[::-1], path_in_repo="lfs.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=io.BytesIO(data), path_in_repo="same.bin", repo_id=repo)  # here already, as chunks
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert (get(api, repo, "lfs.bin") == data[::-1], get(api, repo, "same.bin") == data) == (True, True)
    oid = hashlib.sha256(data).hexdigest()
    batch = http.post(f"/{repo}.git/info/lfs/objects/batch", json=dict(operation="download", objects=[dict(oid=oid, size=len(data))])).json()
    assert http.get(batch["objects"][0]["actions"]["download"]["href"]).content == data
    headers = api.get_hf_file_metadata(url=f"{api.endpoint}/{repo}/resolve/main/lfs.bin")
    assert headers.xet_file_data is None


def test_copies_between_repos(api, apis, repo):
    data, other = noise(300_000, repo), repo + "-copy"
    api.upload_file(path_or_fileobj=data, path_in_repo="w.bin", repo_id=repo)
    api.create_repo(other)
    op = CommitOperationCopy("w.bin", "v.bin", src_repo_id=repo, src_repo_type="model")
    api.create_commit(other, [op], commit_message="x")
    api.delete_repo(repo)
    assert get(apis["nobody"], other, "v.bin") == data


def test_safetensors_are_described_and_other_libraries_read_them(api, repo, run, tmp_path):
    code = f"""
import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from huggingface_hub import HfApi, HfFileSystem, constants
from safetensors.numpy import save_file
assert not constants.HF_HUB_DISABLE_XET
save_file(dict(w=np.arange(200_000, dtype=np.float32)), "model.safetensors")
api = HfApi()
api.upload_file(path_or_fileobj="model.safetensors", path_in_repo="model.safetensors", repo_id="{repo}")
assert api.model_info("{repo}").safetensors.total == 200_000 == api.get_safetensors_metadata("{repo}").parameter_count["F32"]
with HfFileSystem().open("{repo}/model.safetensors") as f:
    f.seek(400_000)
    assert f.read(1000) == open("model.safetensors", "rb").read()[400_000:401_000]
Dataset.from_dict(dict(x=list(range(50_000)))).push_to_hub("{repo}-data")
with HfFileSystem().open("datasets/{repo}-data/data/train-00000-of-00001.parquet") as f:
    assert pq.read_table(f)["x"].to_pylist() == list(range(50_000))
print("ok")
"""
    assert run(code, HF_HUB_DISABLE_XET="0", HF_HOME=str(tmp_path)).endswith("ok\n")


def test_the_command_line(client_env, repo, tmp_path):
    (tmp_path / "w.bin").write_bytes(noise(300_000, repo))
    hf = [str(Path(sys.executable).with_name("hf"))]
    env = {k: v for k, v in client_env.items() if k != "HF_HUB_DISABLE_XET"} | dict(HF_HOME=str(tmp_path / "home"))
    for args in (["upload", repo, str(tmp_path / "w.bin"), "w.bin"], ["download", repo, "w.bin", "--local-dir", str(tmp_path / "out")]):
        subprocess.run([*hf, *args], env=env, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "out/w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()
    assert list((tmp_path / "home/xet").glob("*/shard-cache/*.mdb"))  # it did go by Xet


def test_writers_at_once(api, apis, repo):
    def one(i):
        (api if i % 2 else apis["ann"]).upload_file(path_or_fileobj=noise(100_000, repo) + noise(50_000, repo + str(i)), path_in_repo=f"{i}.bin",
                                                    repo_id=repo, create_pr=not i % 2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    for i in (1, 3, 5, 7):
        assert get(api, repo, f"{i}.bin").endswith(noise(50_000, repo + str(i)))


# Who may know and have what

def test_a_stranger_learns_nothing_of_private_chunks(http, api, repo):
    api.update_repo_settings(repo, private=True)
    api.create_repo(f"{repo}-public")
    parts = [noise(20_000, repo + str(i)) for i in range(5)]
    xorb, body = xorb_of(parts)
    mine = token(http, repo)
    assert cas(http, mine, "POST", f"/v1/xorbs/default/{xorb}", content=body).json() == {"was_inserted": True}
    file = file_of(parts, xorb)
    assert cas(http, mine, "POST", "/v1/shards", content=shard_of(file)).status_code == 200
    hers = token(http, f"{repo}-public", "read", "ann")
    chunk, hash = to_hex(chunk_hash(parts[0])), to_hex(file[0])
    assert cas(http, mine, "GET", f"/v1/chunks/default/{chunk}").status_code == 200
    assert cas(http, hers, "GET", f"/v1/reconstructions/{hash}").status_code == 404
    assert token(http, repo, "read", "ann").status_code == 404 and token(http, repo, "read", None).status_code == 401


def test_a_stranger_cannot_build_from_what_he_has_not_sent(http, api, apis, repo):
    api.update_repo_settings(repo, private=True)
    parts = [noise(20_000, repo + str(i)) for i in range(3)]
    xorb, body = xorb_of(parts)
    mine = token(http, repo)
    cas(http, mine, "POST", f"/v1/xorbs/default/{xorb}", content=body)
    cas(http, mine, "POST", "/v1/shards", content=shard_of(file_of(parts, xorb)))
    hers_repo = f"ann/{repo.split('/')[1]}"
    apis["ann"].create_repo(hers_repo)
    hers = token(http, hers_repo, "write", "ann")
    assert cas(http, hers, "GET", f"/v1/chunks/default/{to_hex(chunk_hash(parts[0]))}").status_code == 404
    for file in (file_of(parts, xorb), file_of(parts[:1], xorb), (*file_of(parts, xorb)[:2], None)):
        r = cas(http, hers, "POST", "/v1/shards", content=shard_of(file))
        assert (r.status_code, "has not been uploaded" in r.text) == (400, True)
    r = cas(http, hers, "POST", "/v1/shards", content=shard_of(file_of(parts, "0" * 64)))  # the same words for one that nobody has
    assert (r.status_code, "has not been uploaded" in r.text) == (400, True)
    assert cas(http, hers, "POST", f"/v1/xorbs/default/{xorb}", content=body).json() == {"was_inserted": False}
    assert cas(http, hers, "POST", "/v1/shards", content=shard_of(file_of(parts, xorb))).status_code == 200


def test_access_is_looked_up_at_each_call(http, api, apis, repo):
    api.upload_file(path_or_fileobj=noise(50_000, repo), path_in_repo="w.bin", repo_id=repo)
    hash = api.get_paths_info(repo, "w.bin")[0].xet_hash
    t = token(http, repo, "read", "ann")
    ask = lambda: cas(http, t, "GET", f"/v2/reconstructions/{hash}").status_code
    assert ask() == 200
    api.update_repo_settings(repo, gated="auto")
    assert ask() == 403 and token(http, repo, "read", "ann").status_code == 403
    http.post(f"/{repo}/ask-access", headers={"Authorization": f"Bearer {TOKENS['ann']}"})
    assert ask() == 200
    api.update_repo_settings(repo, gated=False, private=True)
    assert ask() == 404


def test_tokens_are_what_they_were_made_for(http, api, apis, repo):
    read, write = token(http, repo, "read"), token(http, repo)
    assert read["exp"] - time.time() > 600 and read["casUrl"] == write["casUrl"] != token(http, repo, "read", "ann")["casUrl"]
    headers = http.get(f"/api/models/{repo}/xet-read-token/main").headers
    assert headers["X-Xet-Cas-Url"] == read["casUrl"] and int(headers["X-Xet-Token-Expiration"]) >= read["exp"]
    post = lambda t, path="/v1/shards": cas(http, t, "POST", path, content=b"").status_code
    assert post(read) == 403 and post(write) == 400
    assert token(http, repo, "write", "ann").status_code == 403 and token(http, repo, "write", None).status_code == 401
    for bad in ("x", TOKENS["you"], write["accessToken"] + "0", write["accessToken"].replace("xet=write", "xet=read"),
                write["accessToken"].replace("user=you", "user=ann"), "\xe9\xff", "sig=&exp="):
        r = http.get(read["casUrl"] + "/v1/reconstructions/" + "0" * 64, headers={"Authorization": f"Bearer {bad}".encode("latin1")})
        assert r.status_code == 401, bad
    assert http.get("/api/whoami-v2", headers={"Authorization": f"Bearer {read['accessToken']}"}).status_code == 401
    for path in (f"/lfs/{'0' * 64}?{write['accessToken']}", f"/api/xet/{'0' * 64}?{write['accessToken']}"):
        assert http.get(path).status_code == 403 and http.put(path).status_code in (403, 404)
    assert cas(http, write, "POST", "/v1/xorb-grants/default/" + "0" * 64, content=b"{}").status_code == 404
    assert cas(http, write, "POST", "/v1/telemetry", content=b"\xff").status_code == 200


# Bodies that lie

@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:-1], lambda b: b[:3], lambda b: b"\1" + b[1:], lambda b: b + b, lambda b: b + b"x",
                                   lambda b: b[:4] + b"\1" + b[5:], lambda b: b[:4] + b"\2" + b[5:], lambda b: b[:4] + b"\x63" + b[5:],
                                   lambda b: b[:5] + b"\xff\xff\xff" + b[8:], lambda b: b[:8] + bytes(9) + b[17:], lambda b: b"XETBLOB" + b, lambda b: b + bytes(8)])
def test_a_spoilt_xorb_leaves_nothing(http, repo, server, spoil):
    t, (xorb, body), before = token(http, repo), xorb_of([noise(500, "spoilt"), noise(600, "xorb")]), at_rest(server)
    r = cas(http, t, "POST", f"/v1/xorbs/default/{xorb}", content=spoil(body))
    assert (r.status_code, at_rest(server), list(server.data.glob("lfs/tmp/*"))) == (400, before, []), r.text
    assert cas(http, t, "POST", "/v1/xorbs/default/..%2F..%2Fx", content=body).status_code == 400


def test_bombs(http, repo):
    import lz4.frame
    t, zeros = token(http, repo), lz4.frame.compress(bytes(16_000_000))
    lying = b"\0" + len(zeros).to_bytes(3, "little") + b"\1" + (1000).to_bytes(3, "little") + zeros
    honest = lying[:5] + (16_000_000).to_bytes(3, "little") + zeros
    many = (b"\0" + len(part := lz4.frame.compress(bytes(CHUNK))).to_bytes(3, "little") + b"\1" + CHUNK.to_bytes(3, "little") + part) * 65
    for body in (lying, honest, many, pack(b"x") * 70_000):
        assert cas(http, t, "POST", "/v1/xorbs/default/" + "0" * 64, content=body).status_code == 400


def test_a_shard_that_lies_makes_no_file(http, api, repo, server):
    t, parts = token(http, repo), [noise(9_000, repo + str(i)) for i in range(4)]
    xorb, body = xorb_of(parts)
    cas(http, t, "POST", f"/v1/xorbs/default/{xorb}", content=body)
    hash, terms, oid = file_of(parts, xorb)
    good, X = shard_of((hash, terms, oid)), from_hex(xorb)
    lies = [b"", good[:47], good[:100], good[:-60 - 48], b"x" + good[1:], good[:32] + b"\3" + good[33:],
            shard_of((hash, terms, "0" * 64)), shard_of((hash, terms[::-1], oid)), shard_of((bytes(32), terms, oid)), shard_of((hash, b"", oid)),
            shard_of((hash, TERM.pack(X, 9000, 3, 3), oid)), shard_of((hash, TERM.pack(X, 9000, 4, 5), oid)),
            shard_of((hash, TERM.pack(X, 9001, 0, 1), oid)), shard_of((hash, TERM.pack(X, 9000, 2**32 - 1, 0), oid)),
            good[:48 + 36] + b"\xff\xff\xff\xff" + good[48 + 40:], shard_of((hash, terms, oid), (hash, terms, "1" * 64))]
    for i, lie in enumerate(lies):
        r = cas(http, t, "POST", "/v2/shards", content=lie)
        assert r.status_code == 400, (i, r.text)
    assert cas(http, t, "GET", f"/v1/reconstructions/{to_hex(hash)}").status_code == 404
    assert commit(http, repo, oid, 36_000).status_code == 400
    assert cas(http, t, "POST", "/v2/shards", content=good).json() == {"type": "result"}
    assert commit(http, repo, oid, 36_000).json()["success"]


# The parts at rest

@pytest.fixture
def chunks(tmp_path):
    store = Store(tmp_path)
    return Chunks(store, Db(tmp_path / "hub.sqlite3"))


def keep(chunks, parts, user="ann"):
    xorb, body = xorb_of(parts)
    path = chunks.tmp / xorb
    with open(path, "x+b") as f:
        f.write(body)
        chunks.keep(f, xorb, user)
    path.unlink(missing_ok=True)
    return xorb


def test_names_are_those_of_the_protocol():
    "Vectors of the public reference implementation."
    row = [(from_hex(h), n) for h, n in (("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100),
                                         ("c3e67584b5c4fc2a89837ec39e40f2c8a6bb0b2987ac94cd4b31e5fbdd210a72", 200),
                                         ("0d2beb91b9196929a5ddec9f6e306924ddf4a24268e3e59fd8464738d525af37", 300))]
    assert to_hex(xorb_hash(row)) == "71ec1275fca074724e2dd666921b3277c7cee603e4d025bcab2d4050015be2bc"
    assert to_hex(file_hash(row)) == "54e55dccc6653c612bdb5576c5d3cb34bb31bc4e100248abccf4c908b3ef7715"
    assert to_hex(xorb_hash(row[:1])) == to_hex(row[0][0]) and xorb_hash([]) == bytes(32)


def test_reading_and_cutting_anywhere(chunks):
    rng = random.Random(0)
    parts = [rng.randbytes(rng.randrange(1, 300)) for _ in range(40)]
    xorbs = [keep(chunks, parts[:15]), keep(chunks, parts[15:])]
    whole, terms = b"", b""
    for _ in range(12):
        x = rng.randrange(2)
        own = parts[:15] if x == 0 else parts[15:]
        a = rng.randrange(len(own))
        b = rng.randrange(a + 1, len(own) + 1)
        piece = b"".join(own[a:b])
        whole, terms = whole + piece, terms + TERM.pack(from_hex(xorbs[x]), len(piece), a, b)
    with chunks.open_file(terms) as f:
        assert f.read() == whole and f.read() == b""
        for _ in range(300):
            a, n = rng.randrange(len(whole) + 5), rng.randrange(1, 2000)
            assert (f.seek(a), f.read(n)) == (a, whole[a:a + n])
    for _ in range(300):
        a = rng.randrange(len(whole))
        b = rng.randrange(a + 1, len(whole) + 1)
        skip, cut = cut_terms(chunks, terms, a, b)
        blob = b"".join(TERM.pack(from_hex(x), n, i, j) for x, i, j, n in cut)
        with chunks.open_file(blob) as f:
            assert f.read()[skip:skip + b - a] == whole[a:b]
        assert skip < 300 and all(any(i <= a and b <= j for i, j in runs(cut)[x]) for x, a, b, _ in cut)


def test_cleaning_up(chunks):
    parts = [[noise(5000, f"{i}{j}") for j in range(3)] for i in range(3)]
    used, dropped, _ = xorbs = [keep(chunks, p) for p in parts]
    for i, key in enumerate(("a" * 24, "b" * 24)):
        hash, terms, oid = file_of(parts[i], xorbs[i])
        chunks.add(key, [File(to_hex(hash), oid, 15_000, terms)])
    chunks.db.drop_repo("b" * 24)
    assert chunks.collect() == (0, 0) and chunks.epoch() == 0
    chunks.db.conn.execute("UPDATE xet_known SET created=0")
    chunks.db.conn.execute("UPDATE xet_files SET created=0")
    chunks.claim("ann", {xorbs[2]})  # somebody is about to use the third
    assert 15_000 < chunks.collect()[1] < 16_000 and chunks.epoch() == 1
    assert [chunks.xorbs.size(x) is not None for x in xorbs] == [True, False, True]
    with pytest.raises(HubError, match="has not been uploaded"):
        chunks.claim("ann", {dropped})
    assert keep(chunks, parts[1]) == dropped and chunks.xorbs.size(dropped)


def test_a_client_goes_on_after_a_clean_up(tmp_path, monkeypatch):
    from huggingface_hub import HfApi
    with running(tmp_path, users=["you:" + TOKENS["you"]]) as (url, hub):
        api = HfApi(endpoint=url, token=TOKENS["you"])
        data = noise(300_000, "clean")
        api.create_repo("you/m")
        api.upload_file(path_or_fileobj=data, path_in_repo="w.bin", repo_id="you/m")
        api.delete_repo("you/m")
        assert hub.chunks.collect(grace=-1)[1] > 300_000
        api.create_repo("you/n")
        api.upload_file(path_or_fileobj=data, path_in_repo="w.bin", repo_id="you/n")  # its cache still names what has gone
        assert get(api, "you/n", "w.bin") == data


def test_a_shard_is_read_to_its_end_and_no_further():
    hash, terms, oid = file_of([b"x"], xorb_of([b"x"])[0])
    body = shard_of((hash, terms, oid), (hash, terms, None))
    assert list(read_shard(io.BytesIO(body + b"more"), len(body) + 4)) == [(hash, terms, oid), (hash, terms, None)]


def commit(http, repo, oid, size):
    lines = [dict(key="header", value=dict(summary="x")), dict(key="lfsFile", value=dict(path="w.bin", algo="sha256", oid=oid, size=size))]
    return http.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines)), headers={"Content-Type": "application/x-ndjson"})
