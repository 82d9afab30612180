"""Buckets, through the official client, the `hf` command and raw requests."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_process import TOKENS
from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import BucketBatchError, BucketNotFoundError, HfHubHTTPError

pytest.importorskip("hf_xet")
from hfflow.localhub.buckets import list_files, list_level  # noqa: E402
from hfflow.localhub.care import check, gc  # noqa: E402
from hfflow.localhub.server import running  # noqa: E402

HF = Path(sys.executable).with_name("hf")


@pytest.fixture(autouse=True)
def xet_on(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)


@pytest.fixture
def name(request):
    return f"b-{time.time_ns() % 10**12}"


@pytest.fixture
def bucket(api, name):
    return api.create_bucket(name).bucket_id


def put(api, bucket, **files):
    api.batch_bucket_files(bucket, add=[(data.encode(), path.replace("__", "/").replace("_", ".")) for path, data in files.items()])


def paths(api, bucket, **kw):
    return [f.path for f in api.list_bucket_tree(bucket, **kw)]


def send(http, bucket, *ops, who="you"):
    body = "\n".join(o if isinstance(o, str) else json.dumps(o) for o in ops)
    return http.post(f"/api/buckets/{bucket}/batch", content=body, headers={"Authorization": f"Bearer {TOKENS[who]}"})


def test_the_life_of_a_bucket(apis, name):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    b = you.create_bucket(name, private=True)
    assert (b.bucket_id, you.create_bucket(name, exist_ok=True)) == (f"you/{name}", b)
    b = b.bucket_id
    for stranger, status in ((ann, 404), (nobody, 401)):
        for call in (lambda a: a.bucket_info(b), lambda a: list(a.list_bucket_tree(b)), lambda a: put(a, b, x="1"), lambda a: a.delete_bucket(b),
                     lambda a: list(a.get_bucket_paths_info(b, ["x"]))):
            with pytest.raises((HfHubHTTPError, ConnectionError), match=str(status)):
                call(stranger)
    count = lambda a: [x.id for x in a.list_buckets("you", search=name[3:])]
    assert (count(you), count(ann), count(nobody)) == ([b], [], [])
    you.update_bucket_settings(b, private=False)
    assert (count(ann), nobody.bucket_info(b).private) == ([b], False)
    for call in (lambda: put(ann, b, x="1"), lambda: ann.delete_bucket(b), lambda: ann.create_bucket(f"you/{name}x"), lambda: ann.move_bucket(b, "ann/mine")):
        with pytest.raises((HfHubHTTPError, ConnectionError), match="403"):
            call()
    put(you, b, a_txt="one")
    you.move_bucket(b, f"hfflow/{name}")
    assert nobody.bucket_info(b).id == f"hfflow/{name}" and paths(nobody, b) == ["a.txt"]
    you.delete_bucket(f"hfflow/{name}")
    with pytest.raises(BucketNotFoundError):
        you.bucket_info(b)
    with pytest.raises(HfHubHTTPError, match="404"):
        you.delete_bucket(name)


def test_lists_of_buckets_are_paged(api, http, name):
    made = [api.create_bucket(f"{name}-{i}").bucket_id for i in range(3)]
    first = http.get("/api/buckets/me", params=dict(search=name, limit=2))
    assert [b["id"] for b in first.json()] == made[:2]
    assert [b["id"] for b in http.get(first.links["next"]["url"]).json()] == made[2:]
    assert http.get("/api/buckets/no-such-user").status_code == 404


def test_a_batch_is_seen_whole_and_tells_what_failed(api, http, bucket):
    put(api, bucket, a_txt="one", b_txt="two", empty="")
    a, b, empty = api.list_bucket_tree(bucket)
    assert (a.size, empty.size, empty.path) == (3, 0, "empty")
    copy = dict(type="copyFile", sourceRepoType="bucket", sourceRepoId=bucket, xetHash=a.xet_hash, mtime=1700000000123)
    r = send(http, bucket, copy | dict(path="c/d.txt"), copy | dict(path="../up"), dict(type="deleteFile", path="b.txt"), dict(type="deleteFile", path="absent"))
    assert (r.status_code, [f["path"] for f in r.json()["failed"]], r.json()["succeeded"]) == (200, ["../up"], 3)
    assert paths(api, bucket) == ["a.txt", "c/d.txt", "empty"]
    d, = api.get_bucket_paths_info(bucket, ["c/d.txt", "b.txt", "c"])
    assert (d.size, d.mtime.timestamp()) == (3, 1700000000.123)
    r = send(http, bucket, dict(type="deleteFile", path="a.txt"), "no JSON")
    assert r.status_code == 400 and "a.txt" in paths(api, bucket)


@pytest.mark.parametrize("op", [dict(xetHash="0" * 63), dict(xetHash=3), dict(), dict(mtime="soon"), dict(mtime=10**18), dict(mtime=-1), dict(mtime=True),
                                dict(path="/x"), dict(path="a//b"), dict(path="a/./b"), dict(path=""), dict(path="a\0b"), dict(path="x" * 1025),
                                dict(type="copyFile"), dict(type="copyFile", sourceRepoType="car", sourceRepoId="you/x"),
                                dict(type="copyFile", sourceRepoType="model", sourceRepoId=["x"]), dict(xetHash="f" * 64)])
def test_bad_operations_fail_alone(http, bucket, op):
    r = send(http, bucket, dict(type="addFile", path="x", xetHash="0" * 64) | op if op else dict(type="addFile", path="x"))
    assert r.status_code == 422 and len(r.json()["failed"]) == 1, r.text


@pytest.mark.parametrize("line", ["[]", "3", '{"type":"addFile"}', '{"type":"moveFile","path":"x"}', '{"type":"addFile","path":3}', "[" * 100_000, '{"a":NaN}', "\xff"])
def test_bad_lines(http, bucket, line):
    assert send(http, bucket, line).status_code == 400


@pytest.mark.parametrize("method,path,status", [
    ("POST", "/api/buckets/you/a--b", 400), ("GET", "/api/buckets/you/none", 404), ("GET", "/api/buckets/{b}/tree?limit=x", 400),
    ("GET", "/api/buckets/{b}/events?cursor=x", 400), ("GET", "/api/buckets/{b}/events?since=x", 400), ("PUT", "/api/buckets/you/none/settings", 404),
    ("GET", "/buckets/{b}/resolve/none", 404), ("GET", "/buckets/{b}/resolve/%ff", 400), ("PUT", "/api/buckets/you", 404)])
def test_bad_calls(http, bucket, method, path, status):
    assert http.request(method, path.replace("{b}", bucket)).status_code == status


@pytest.mark.parametrize("path,body", [
    ("batch", r'{"type":"deleteFile","path":"\ud800"}'), ("batch", r'{"type":"copyFile","path":"x","sourceRepoType":"bucket","sourceRepoId":"\ud800"}'),
    ("paths-info", r'{"paths":["\ud800"]}'), ("paths-info", '{"paths":[3, null, ["x"]]}'), ("settings", '{"visibility":3}')])
def test_bad_bodies(http, bucket, path, body):
    r = http.request("PUT" if path == "settings" else "POST", f"/api/buckets/{bucket}/{path}", content=body, headers={"Content-Type": "application/json"})
    assert r.status_code == 400 or r.json() == []


def test_prefixes_levels_and_pages(api, http, bucket):
    names = ["a.txt", "logs.json", "logs/1.txt", "logs/deep/2.txt", "logs/deep/3.txt", "logs0", "z/é.txt"]
    api.batch_bucket_files(bucket, add=[(b"x", n) for n in names])
    assert paths(api, bucket) == paths(api, bucket, recursive=True) == names
    assert paths(api, bucket, prefix="logs", recursive=True) == names[1:6]
    assert paths(api, bucket, recursive=False) == ["a.txt", "logs.json", "logs", "logs0", "z"]
    assert paths(api, bucket, prefix="logs", recursive=False) == ["logs.json", "logs/1.txt", "logs/deep", "logs0"]
    assert paths(api, bucket, prefix="logs/", recursive=False) == ["logs/1.txt", "logs/deep"]
    assert paths(api, bucket, prefix="a.txt", recursive=False) == ["a.txt"] and paths(api, bucket, prefix="%") == []
    for level in ("true", "false"):
        got, url = [], f"/api/buckets/{bucket}/tree?recursive={level}&limit=1"
        while url:
            r = http.get(url)
            got += [e["path"] for e in r.json()]
            url = r.links.get("next", {}).get("url")
        assert got == paths(api, bucket, recursive=level == "true")


def test_plain_downloads(api, http, bucket):
    data = os.urandom(300_000)
    api.batch_bucket_files(bucket, add=[(data, "w x.bin"), (b"<script>", "page.html")])
    url = f"/buckets/{bucket}/resolve/w%20x.bin"
    head = http.head(url)
    assert (head.headers["content-length"], head.content) == (str(len(data)), b"") and head.headers["x-xet-hash"] in head.headers["etag"]
    r = http.get(url, headers={"Range": "bytes=131000-200000"})
    assert (r.status_code, r.content) == (206, data[131000:200001])
    assert http.get(url, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    assert http.get(url, headers={"Range": "bytes=300000-"}).status_code == 416
    page = http.get(f"/buckets/{bucket}/resolve/page.html")
    assert page.text == "<script>" and page.headers["content-type"].startswith("text/plain") and "sandbox" in page.headers["content-security-policy"]


def test_a_hash_is_no_key(apis, http, name, repo):
    you, ann = apis["you"], apis["ann"]
    mine, hers = you.create_bucket(name, private=True).bucket_id, ann.create_bucket(name).bucket_id
    secret = os.urandom(20_000)
    you.batch_bucket_files(mine, add=[(secret, "s.bin")])
    hash = next(you.list_bucket_tree(mine)).xet_hash
    source = lambda kind, id: dict(type="copyFile", path="s.bin", xetHash=hash, sourceRepoType=kind, sourceRepoId=id)
    for op in (dict(type="addFile", path="s.bin", xetHash=hash), source("bucket", mine), source("bucket", hers)):
        assert send(http, hers, op, who="ann").status_code == 422
    you.upload_file(path_or_fileobj=secret, path_in_repo="s.bin", repo_id=repo)
    you.update_repo_settings(repo, gated="manual")
    assert send(http, hers, source("model", repo), who="ann").status_code == 422
    you.update_repo_settings(repo, private=True, gated=False)
    assert send(http, hers, source("model", repo), who="ann").status_code == 422
    you.update_repo_settings(repo, private=False)
    ann.copy_files(f"hf://{repo}/s.bin", f"hf://buckets/{hers}/s.bin")
    assert http.get(f"/buckets/{hers}/resolve/s.bin").content == secret
    you.delete_repo(repo)
    assert http.get(f"/buckets/{hers}/resolve/s.bin").content == secret


def test_a_token_for_one_bucket(tmp_path):
    with running(tmp_path / "hub", users=["you:token-of-you"]) as (url, hub):
        you = HfApi(url, token="token-of-you")
        one, two = (you.create_bucket(n, private=True).bucket_id for n in ("one", "two"))
        entity = dict(type="bucket", name=one, _id=hub.db.find("bucket", one).key)
        token = hub.db.add_token("you", role="fineGrained", scopes=dict(scoped=[dict(entity=entity, permissions=["repo.write"])]))
        api = HfApi(url, token=token)
        put(api, one, a_txt="1")
        assert [b.id for b in api.list_buckets("you")] == [one]
        with pytest.raises(HfHubHTTPError, match="404"):
            api.bucket_info(two)


def test_the_cleaner_keeps_what_buckets_have(tmp_path):
    kept, gone = os.urandom(50_000), os.urandom(50_000)
    with running(tmp_path / "hub", users=["you:token-of-you"]) as (url, hub):
        api = HfApi(url, token="token-of-you")
        b = api.create_bucket("b").bucket_id
        for data in (gone, kept):
            api.batch_bucket_files(b, add=[(data, "w.bin")])
        api.create_repo("you/r")
        api.upload_file(path_or_fileobj=kept[::-1], path_in_repo="x.bin", repo_id="you/r")
        api.copy_files("hf://you/r/x.bin", f"hf://buckets/{b}/x.bin")
        api.delete_repo("you/r")
        assert hub.chunks.collect() == (0, 0)
        freed = gc(hub.data, older=-1)
        assert 50_000 <= sum(f.bytes for f in freed) < 60_000
        got = {p: tmp_path / p for p in ("w.bin", "x.bin")}
        api.download_bucket_files(b, list(got.items()))
        assert (got["w.bin"].read_bytes(), got["x.bin"].read_bytes()) == (kept, kept[::-1])
        assert check(hub.data) == []
        api.delete_bucket(b)
        assert hub.db.all("SELECT * FROM bucket_files") == hub.db.all("SELECT * FROM bucket_changes") == []
        gc(hub.data, older=-1)
        assert list(hub.chunks.xorbs.objects.glob("*/*/*")) == []


def test_care_tells_of_lost_chunks(tmp_path):
    with running(tmp_path / "hub", users=["you:token-of-you"]) as (url, hub):
        api = HfApi(url, token="token-of-you")
        put(api, api.create_bucket("b").bucket_id, a_txt="one")
        with hub.db.tx() as c:
            c.execute("DELETE FROM xet_files")
        assert [(f.where, "a.txt" in f.what) for f in check(hub.data)] == [("you/b", True)]


def events(http, bucket, n, **params):
    res, name = [], None
    with http.stream("GET", f"/api/buckets/{bucket}/events", params=params) as r:
        assert r.status_code == 200
        for line in r.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                res.append((name, json.loads(line[6:])))
                if len(res) == n:
                    return res
    return res


def test_following(api, http, bucket):
    assert events(http, bucket, 1) == [("ready", {})]
    since = http.get(f"/api/buckets/{bucket}").json()["updatedAt"]
    put(api, bucket, a_txt="one")
    put(api, bucket, a_txt="two")
    api.batch_bucket_files(bucket, delete=["a.txt"])
    (_, d), ready = events(http, bucket, 2, since=since)
    assert [(c["path"], c["op"]) for c in d["changes"]] == [("a.txt", "add"), ("a.txt", "update"), ("a.txt", "delete")]
    assert ready == ("ready", dict(cursor=d["cursor"])) and events(http, bucket, 1, cursor=d["cursor"]) == [("ready", {})]
    assert [e[0] for e in events(http, bucket, 9, since="2020-01-01T00:00:00Z")] == ["reset"]


def test_following_as_a_file_system(api, bucket):
    fs = HfFileSystem(endpoint=api.endpoint, token=api.token, skip_instance_cache=True, live_follow=True)
    root = f"buckets/{bucket}"
    assert fs.ls(root) == []
    with fs.open(f"{root}/d/a.txt", "w") as f:
        f.write("one")
    assert fs.cat(f"{root}/d/a.txt") == b"one" and fs.glob(f"{root}/*/*.txt") == [f"{root}/d/a.txt"]
    fs.mv(f"{root}/d/a.txt", f"{root}/d/b.txt")
    assert fs.ls(f"{root}/d", detail=False) == [f"{root}/d/b.txt"]
    put(api, bucket, d__c_txt="two")
    end = time.monotonic() + 10
    while len(fs.ls(f"{root}/d")) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert fs.ls(f"{root}/d", detail=False) == [f"{root}/d/b.txt", f"{root}/d/c.txt"]
    api.delete_bucket(bucket)  # ends the stream, which this process would keep open


def test_the_hf_command(api, client_env, bucket, tmp_path):
    def hf(*args):
        r = subprocess.run([HF, *map(str, args)], env=client_env | dict(HF_HUB_DISABLE_XET="0"), capture_output=True, text=True, timeout=60)
        assert r.returncode == 0, r.stdout + r.stderr
        return r.stdout

    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("one")
    (tmp_path / "in/sub/b.txt").write_text("two")
    hf("buckets", "sync", tmp_path / "in", f"hf://buckets/{bucket}/x")
    assert hf("buckets", "list", bucket, "-R", "--quiet").split() == ["x/a.txt", "x/sub/b.txt"]
    assert hf("cp", f"hf://buckets/{bucket}/x/sub/b.txt", "-") == "two"


def test_datasets_live_in_buckets(run, bucket):
    code = f"""
from datasets import Dataset, load_dataset
Dataset.from_dict({{'x': [1, 2, 3]}}).push_to_hub('buckets/{bucket}')
print(load_dataset('buckets/{bucket}', split='train')['x'][:])
"""
    assert run(code, HF_HUB_DISABLE_XET="0").split("\n")[-2] == "[1, 2, 3]"


def test_pages(api, http, name):
    b = api.create_bucket(name, private=True).bucket_id
    put(api, b, a_txt="one", d__b_txt="two")
    stranger = {"Authorization": f"Bearer {TOKENS['ann']}"}
    top, sub = http.get(f"/buckets/{b}").text, http.get(f"/buckets/{b}/tree/d").text
    assert f"/buckets/{b}/resolve/a.txt" in top and f"/buckets/{b}/tree/d" in top and "b.txt" in sub and "a.txt" not in sub
    assert http.get(f"/buckets/{b}/tree/none").status_code == 404
    assert f"/buckets/{b}" in http.get("/you").text and f"/buckets/{b}" not in http.get("/you", headers=stranger).text
    assert http.get(f"/buckets/{b}", headers=stranger).status_code == 404


def test_names_between_letters(tmp_path):
    "A folder's name, and names that sort right before and after what is in it."
    with running(tmp_path / "hub", users=["you:token-of-you"]) as (url, hub):
        api = HfApi(url, token="token-of-you")
        b = api.create_bucket("b").bucket_id
        names = ["a", "a!", "a.", "a/b", "a/\U0010fffe", "a0", "ä/x"]
        api.batch_bucket_files(b, add=[(b"x", n) for n in names])
        key = hub.db.find("bucket", b).key
        assert [r["path"] for r in list_files(hub.db, key)] == sorted(names)
        assert [e[0] if isinstance(e, tuple) else e["path"] for e in list_level(hub.db, key)] == ["a", "a!", "a.", "a", "a0", "ä"]


def test_failures_of_the_client(api, bucket):
    put(api, bucket, a_txt="one")
    hash = next(api.list_bucket_tree(bucket)).xet_hash
    with pytest.raises(BucketBatchError) as e:
        api.batch_bucket_files(bucket, copy=[("bucket", bucket, hash, "b.txt"), ("bucket", bucket, "1" * 64, "c.txt")])
    assert [f["path"] for f in e.value.failures] == ["c.txt"] and paths(api, bucket) == ["a.txt", "b.txt"]
