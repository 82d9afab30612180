"""The dataset viewer: the same rows for `load_dataset`, for raw HTTP and in a browser; nothing outside the repo is read."""
import gzip
import io
import json
import re
import shutil
import struct
import threading
import time
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, NotASafetensorsRepoError
from PIL import Image

SCRIPT = "<script>window.hacked=1</script>"


def picture(color, size=(6, 4), kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, out, **options)
    return out.getvalue()


@pytest.fixture
def dataset(api, http, request):
    """Make data sets; ask the dataset server about them."""
    base = "you/" + re.sub(r"\W+", "-", request.node.name)[:40].strip("-") + f"-{time.time_ns() % 10**9}"

    def make(files, card="", private=False, name=base):
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        if card:
            files = {**files, "README.md": f"---\n{card}\n---\n".encode()}
        api.create_commit(name, [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="data", repo_type="dataset")

        def ask(call, status=200, client=http, **q):
            r = client.get(f"/api/viewer/{call}", params=dict(dataset=name, **q), timeout=60)
            assert r.status_code == status, r.text[:500]
            return r.json()

        ask.id = name
        return ask

    return make


TRAIN = dict(config="default", split="train")


# Which files are which split

@pytest.mark.parametrize("files,card,expected", [
    (["train.csv", "test.csv"], "", [("default", "train"), ("default", "test")]),
    (["data/train-00000-of-00001.csv", "data/dev-00000-of-00001.csv"], "", [("default", "train"), ("default", "dev")]),
    (["a/train/x.csv", "a/valid/x.csv"], "", [("default", "train"), ("default", "validation")]),
    (["anything.csv"], "", [("default", "train")]),
    (["a.csv", "b.csv"], "configs: [{config_name: one, data_files: a.csv}, {config_name: two, data_files: [{split: eval, path: b.csv}]}]",
     [("one", "train"), ("two", "eval")]),
    (["one/train.csv", "two/test.csv"], "configs: [{config_name: x, data_dir: one}, {config_name: y, data_dir: two}]", [("x", "train"), ("y", "test")]),
])
def test_splits(dataset, files, card, expected):
    ask = dataset({f: b"a\n1\n" for f in files}, card)
    assert [(s["config"], s["split"]) for s in ask("splits")["splits"]] == expected
    assert ask("size")["size"]["dataset"]["num_rows"] == len(files)


OUTSIDE = ["/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "https://example.com/x.csv", "zip://a::b", "~/x.csv", "*" * 30, "hf://datasets/a/b/x.csv"]


def test_a_card_leads_nowhere_else(dataset):
    configs = [dict(config_name=f"bad{i}", data_files=w) for i, w in enumerate(OUTSIDE)] + [dict(config_name="dir", data_dir="../.."), dict(config_name="good", data_files="a.csv")]
    ask = dataset({"a.csv": b"a\n1\n"}, f"configs: {json.dumps(configs)}")
    d = ask("splits")
    assert [s["config"] for s in d["splits"]] == ["good"] and len(d["failed"]) == len(OUTSIDE) + 1
    assert all("no path inside" in f["error"]["error"] for f in d["failed"]) and ask("size")["size"]["dataset"]["num_rows"] == 1
    assert "no path inside" in ask("rows", 422, config="bad0", split="train")["error"]


CARDS = ["configs: 3", "configs: [3, [4]]", "configs: [{config_name: {a: 1}, data_files: {train: 7}}]", "configs: [{config_name: x, data_files: [{split: '../x', path: a.csv}]}]",
         "configs: [{config_name: x, data_files: a.csv, sep: [1, {}]}]", "dataset_info: [3, {features: 8}]", "dataset_info: {features: [{name: a, dtype: {_type: Nothing}}]}", "configs: [{config_name: x, data_files: nowhere/*}]"]


def test_a_strange_card_is_no_server_error(dataset):
    for card in CARDS:
        ask = dataset({"a.csv": b"a\n1\n"}, card)
        for call in ("splits", "size", "info", "parquet", "is-valid"):
            ask(call)


# Formats

FORMATS = {
    "csv": ({"train.csv": b"a,b\n1,x\n2,\n"}, [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    "tsv": ({"train.tsv": b"a\tb\n1\tx\n"}, [{"a": 1, "b": "x"}]),
    "gzip": ({"train.csv.gz": gzip.compress(b"a,b\n1,x\n")}, [{"a": 1, "b": "x"}]),
    "lines": ({"train.jsonl": b'{"q": {"t": "x"}, "n": [1, 2]}\n{"q": {"t": null}, "n": []}\n'}, [{"q": {"t": "x"}, "n": [1, 2]}, {"q": {"t": None}, "n": []}]),
    "array": ({"train.json": b' [{"q": 1}, {"q": 2}]'.strip()}, [{"q": 1}, {"q": 2}]),
    "text": ({"train.txt": "é\nzwei\n".encode()}, [{"text": "é"}, {"text": "zwei"}]),
    "parquet": ({"train.parquet": parquet({"a": [1, None], "b": [b"\xff\x00", None], "f": [float("nan"), 1.5]})}, [{"a": 1, "b": "/wA=", "f": None}, {"a": None, "b": None, "f": 1.5}]),
}


BROKEN = {"train.csv": b'a,b\n"\n', "train.jsonl": b'{"a": 1}\n{"a": \n', "train.parquet": b"PAR1 nothing", "train.json": b"[1, {]", "train.csv.gz": b"\x1f\x8b nothing", "train.txt": b"\xff\xfe\x00\xd8"}


@pytest.fixture(scope="session")
def formats(api, http):
    """One repo with a configuration for each format, and one for each broken file."""
    every = {name: files for name, (files, _) in FORMATS.items()} | {f"broken-{name}": {name: data} for name, data in BROKEN.items()}
    card = "configs: " + json.dumps([dict(config_name=c, data_dir=c) for c in every])
    api.create_repo("you/formats", repo_type="dataset")
    files = {f"{c}/{p}": d for c, fs in every.items() for p, d in fs.items()} | {"README.md": f"---\n{card}\n---\n".encode()}
    api.create_commit("you/formats", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="data", repo_type="dataset")
    return lambda call, **q: http.get(f"/api/viewer/{call}", params=dict(dataset="you/formats", **q), timeout=60)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(formats, name):
    rows, d = FORMATS[name][1], formats("rows", config=name, split="train").json()
    assert [r["row"] for r in d["rows"]] == rows and [r["row_idx"] for r in d["rows"]] == list(range(len(rows)))
    assert set(d) == {"features", "rows", "num_rows_total", "num_rows_per_page", "partial"} and d["num_rows_total"] == len(rows) and d["partial"] is False
    assert [f["name"] for f in d["features"]] == list(rows[0]) and all(r["truncated_cells"] == [] for r in d["rows"])


def test_pictures_and_labels(dataset, http):
    import httpx

    colors = {"cat": "red", "dog": "blue"}
    ask = dataset({f"{split}/{k}/1.png": picture(c) for split in ("train", "test") for k, c in colors.items()})
    d = ask("first-rows", **TRAIN)
    assert d["features"][1]["type"] == {"names": ["cat", "dog"], "_type": "ClassLabel"} and [r["row"]["label"] for r in d["rows"]] == [0, 1]
    image = d["rows"][1]["row"]["image"]
    assert (image["width"], image["height"]) == (6, 4)
    r = httpx.get(image["src"], trust_env=False)  # without a token
    assert r.content == picture("blue") and r.headers["content-type"] == "image/png" and r.headers["x-content-type-options"] == "nosniff"
    for altered in (image["src"].replace("%5B1", "%5B0"), re.sub("exp=\\d+", "exp=99999999999", image["src"]), image["src"].split("&sig")[0]):
        assert httpx.get(altered, trust_env=False).status_code == 403


def test_metadata_of_pictures(dataset):
    ask = dataset({"1.png": picture("red"), "2.png": picture("blue", (3, 3)), "metadata.csv": b"file_name,caption\n2.png,two\n1.png,one\n"})
    d = ask("rows", **TRAIN)
    assert [(r["row"]["caption"], r["row"]["image"]["width"]) for r in d["rows"]] == [("two", 3), ("one", 6)]
    for name in ("/etc/hostname", "../x.png", "3.png"):
        ask = dataset({"metadata.csv": f"file_name,caption\n{name},x\n".encode()})
        assert "which is no file of this split" in ask("rows", 422, **TRAIN)["error"]


def test_nothing_that_a_cell_names_is_read(dataset):
    from datasets import Features, Image as Picture

    schema = Features(image=Picture()).arrow_schema
    cells = [dict(bytes=None, path="/etc/hostname"), dict(bytes=b"<svg onload=alert(1)>", path=None), dict(bytes=None, path="hf://datasets/a/b/c.png")]
    ask = dataset({"train.parquet": parquet(pa.Table.from_pylist([dict(image=c) for c in cells], schema=schema))})
    import httpx

    rows = [r["row"]["image"] for r in ask("rows", **TRAIN)["rows"]]
    assert rows[0] is None and rows[2] is None and rows[1]["width"] is None
    assert httpx.get(rows[1]["src"], trust_env=False).headers["content-type"] == "application/octet-stream"




def test_broken_files_are_named(formats):
    failed = {f["config"]: f["error"]["error"] for f in formats("size").json()["failed"]}
    assert set(failed) == {f"broken-{name}" for name in BROKEN} and all(failed.values())
    for config in failed:
        for call in ("rows", "first-rows", "statistics"):
            r = formats(call, config=config, split="train")
            assert r.status_code == 422 and "cannot be read" in r.json()["error"] and "/tmp" not in r.text
    assert not any(formats("is-valid", config="broken-train.csv").json().values()) and all(formats("is-valid").json().values())


# Rows

def test_pages_across_files_and_row_groups(dataset):
    ask = dataset({"a.parquet": parquet({"n": range(1000)}, row_group_size=100), "b.parquet": parquet({"n": range(1000, 1030)})})
    for start, n in ((0, 3), (99, 2), (995, 10), (1029, 5), (2000, 5), (500, 0), (250, 100)):
        d = ask("rows", offset=start, length=n, **TRAIN)
        assert [r["row"]["n"] for r in d["rows"]] == list(range(start, min(start + n, 1030))), (start, n)
    assert d["num_rows_total"] == 1030 and d["num_rows_per_page"] == 100


def test_long_cells_are_cut(dataset):
    ask = dataset({"train.parquet": parquet({"n": range(30), "t": ["é" * 100_000] * 30})})
    d = ask("first-rows", **TRAIN)
    cut = [r["truncated_cells"] for r in d["rows"]]
    assert cut[0] == [] and cut[-1] == ["t"] and len(cut) == 30 and len(d["rows"][-1]["row"]["t"]) == 100 and d["truncated"] is False
    assert all(r["truncated_cells"] == [] for r in ask("rows", length=5, **TRAIN)["rows"])


def test_search_and_filter(dataset):
    ask = dataset({"train.parquet": parquet({"name": ["Ant", "o'hara", None, "PLANT"], "legs": [6, 2, 0, 0], "tags": [["x"], [], None, ["Giant"]]})})
    found = lambda call, **q: [r["row_idx"] for r in ask(call, **TRAIN, **q)["rows"]]
    assert found("search", query="ant") == [0, 3] and found("search", query="GIANT") == [3] and found("search", query="' OR 1=1") == []
    assert found("filter", where="legs>=2 AND name<>'Ant'") == [1] and found("filter", where="\"name\"='o''hara'") == [1]
    assert found("filter", where="legs<=6", orderby='"legs" DESC', length=2, offset=1)[:1] == [1]
    assert ask("filter", where="legs=0", length=1, **TRAIN)["num_rows_total"] == 2


@pytest.fixture(scope="session")
def plain(api, http):
    """A small data set to ask in wrong ways."""
    api.create_repo("you/plain", repo_type="dataset")
    api.upload_file(path_or_fileobj=parquet({"name": ["x"], "legs": [1]}), path_in_repo="train.parquet", repo_id="you/plain", repo_type="dataset")
    return lambda call, **q: http.get(f"/api/viewer/{call}", params=dict(dataset="you/plain", **q), timeout=60)


@pytest.mark.parametrize("where", ["legs>1; DROP TABLE t", "1) UNION SELECT (1", "name IN (SELECT 1)", "read_text('/etc/passwd')<>''", "nobody=1", "legs >", "'" * 99, "(" * 1500, "legs=(SELECT count(*) FROM read_csv('/etc/passwd'))",
                                   "x" * 9999, "true) GROUP BY (1", "current_setting('threads')='1'", "repeat('a', 1000000000)=name", "legs::STRUCT(a INT) IS NULL"])
def test_a_filter_is_only_a_condition(plain, where):
    r = plain("filter", where=where, **TRAIN)
    assert r.status_code == 422 and r.json()["error"]


def test_statistics(dataset):
    ask = dataset({"train.parquet": parquet({"i": [0, 5, 10, None], "f": [0.0, 1.0, float("inf"), None], "b": [True, False, True, None], "s": ["x", "x", "y", None], "l": [[1], [], [1, 2], None],
                                            "t": [str(i) * (i % 5 + 1) for i in range(4)], "{x}": [1, 2, 3, 4]})})
    d = ask("statistics", **TRAIN)
    got = {s["column_name"]: s["column_statistics"] for s in d["statistics"]}
    assert d["num_examples"] == 4 and d["partial"] is False and list(got) == ["i", "f", "b", "s", "l", "t", "{x}"]
    assert (got["i"]["min"], got["i"]["max"], got["i"]["mean"], got["i"]["nan_count"], sum(got["i"]["histogram"]["hist"])) == (0, 10, 5.0, 1, 3)
    assert (got["f"]["nan_count"], got["f"]["max"], got["b"]["frequencies"]) == (2, 1.0, {"True": 2, "False": 1})
    assert got["s"]["frequencies"] == {"x": 2, "y": 1} and got["l"]["max"] == 2


@pytest.mark.parametrize("call,q,status", [("rows", {}, 422), ("rows", dict(config="default"), 422), ("rows", TRAIN | dict(length=101), 422), ("rows", TRAIN | dict(offset="x"), 422), ("rows", TRAIN | dict(offset=-1), 422),
                                           ("rows", TRAIN | dict(split="moon"), 404), ("rows", TRAIN | dict(config="\0"), 404), ("search", TRAIN, 422), ("filter", TRAIN, 422), ("size", dict(config="moon"), 404),
                                           ("filter", TRAIN | dict(orderby="a; x"), 422), ("nothing", {}, 404), ("media", {}, 403)])
def test_bad_parameters(plain, call, q, status):
    r = plain(call, **q)
    assert r.status_code == status and r.json()["error"]


def test_who_may_look(dataset, apis, server):
    import httpx

    ask = dataset({"train.csv": b"a\n1\n"}, private=True)
    client = lambda token: httpx.Client(base_url=server.url, trust_env=False, headers={"Authorization": f"Bearer {token}"} if token else {})
    with client(apis["ann"].token) as ann, client(None) as nobody:
        for call in ("splits", "info", "rows", "parquet", "statistics"):
            ask(call, **TRAIN)
            assert ask(call, 404, ann, **TRAIN)["error"] and ask(call, 401, nobody, **TRAIN)["error"]
        assert nobody.get(f"/datasets/{ask.id}/viewer").status_code == 404 and nobody.get(f"/api/datasets/{ask.id}/parquet").status_code == 401
        apis["you"].update_repo_settings(ask.id, repo_type="dataset", private=False, gated="manual")
        assert "restricted" in ask("rows", 403, ann, **TRAIN)["error"] and ask("rows", 401, nobody, **TRAIN)
        apis["you"].grant_access(ask.id, "ann", repo_type="dataset")
        ask("rows", 200, ann, **TRAIN)
        assert nobody.get("/api/viewer/splits").status_code == 422 and nobody.get("/api/viewer/splits?dataset=x").status_code in (401, 404)


# Parquet forms

def test_parquet_addresses(dataset, http):
    ask = dataset({"csv/train.csv": b"a\n1\n2\n", "pq/b c.parquet": parquet({"a": [3]})}, "configs: [{config_name: csv, data_dir: csv}, {config_name: pq, data_files: 'pq/*'}]")
    files = ask("parquet")["parquet_files"]
    assert [(f["config"], f["split"], f["filename"]) for f in files] == [("csv", "train", "0000.parquet"), ("pq", "train", "b c.parquet")]
    for f, rows in zip(files, ([1, 2], [3])):
        r = http.get(f["url"])
        assert len(r.content) == f["size"] and pq.read_table(io.BytesIO(r.content))["a"].to_pylist() == rows
        assert http.get(f["url"], headers={"Range": "bytes=-4"}).content == b"PAR1"
    tree = http.get(f"/api/datasets/{ask.id}/parquet").json()
    assert list(tree) == ["csv", "pq"] and http.get(f"/api/datasets/{ask.id}/parquet/pq/train").json() == tree["pq"]["train"]
    assert http.get(tree["pq"]["train"][0]).status_code == 302 and http.get(tree["pq"]["train"][0], follow_redirects=True).content[:4] == b"PAR1"
    for bad in ("moon", "csv/moon", "csv/train/7.parquet", "csv/train/x"):
        assert http.get(f"/api/datasets/{ask.id}/parquet/{bad}").status_code == 404


@pytest.fixture
def keeper(tmp_path):
    """A keeper of Parquet forms with small limits, and what it needs of a repo."""
    from hfflow.localhub.shards import Parquets, Shown
    from hfflow.localhub.splits import Split
    from hfflow.localhub.store import Entry
    from hfflow.localhub.wire import Hub

    hub = Hub(tmp_path)
    contents = {}
    opened = []

    def read(e, repo):
        opened.append(e.path)
        return io.BytesIO(contents[e.oid])

    hub.open_file, hub.store.open = read, lambda key: None

    def split(module="csv", **files):
        contents.update({f"{hash((k, v))}": v for k, v in files.items()})
        return Split("default", "train", module, [Entry(k.replace("_", "."), "file", f"{hash((k, v))}", len(v), None) for k, v in files.items()])

    return SimpleNamespace(hub=hub, opened=opened, split=split, made=lambda **shown: Parquets(hub, Shown(**shown)))


def csv(n):
    return b"a,b\n" + b"".join(b"%d,%s\n" % (i, b"x" * 50) for i in range(n))


def test_a_huge_split_is_shown_in_part(keeper):
    s = keeper.split(t_csv=csv(5000))
    for shown in (dict(rows=100), dict(bytes=3000)):
        k = keeper.made(**shown)
        form = k.get(s, "key", 60)
        assert form["partial"] is True and 0 < form["num_rows"] <= 100
        shutil.rmtree(k.path(s.key))
    form = keeper.made(shard=100_000).get(s, "key", 60)
    assert form["partial"] is False and form["num_rows"] == 5000
    assert "too large" in keeper.made(array=10).get(keeper.split("json", t_json=b'[{"a": 1}, {"a": 2}]'), "key", 60)["error"]


def test_who_asks_twice_waits_for_one_making(keeper):
    k, s, got = keeper.made(), keeper.split(t_csv=csv(2000)), []
    threads = [threading.Thread(target=lambda: got.append(k.get(s, "key", 60))) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(got) == 8 and all(g == got[0] and g["num_rows"] == 2000 for g in got) and keeper.opened == ["t.csv"]
    k.turn.acquire()  # another form is being made
    other = keeper.split(u_csv=csv(3))
    assert k.get(other, "key", 0.05) is None
    k.turn.release()
    assert k.get(other, "key", 60)["num_rows"] == 3


def test_a_form_is_whole_or_not_there(keeper, monkeypatch):
    import hfflow.localhub.shards as shards

    k, s = keeper.made(), keeper.split(t_csv=csv(10))
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(shards, "fsync_all", lambda d: (_ for _ in ()).throw(full))
        assert "No space" in k.get(s, "key", 60)["error"]
        assert not k.path(s.key).exists() and not list(keeper.hub.store.lfs.tmp.iterdir()) and not k.jobs
    assert k.get(s, "key", 60)["num_rows"] == 10  # trouble of the machine is not kept
    old, new = s, keeper.split(v_csv=csv(10))
    small = keeper.made(disk=10, rest=0)
    assert small.get(new, "key", 60)["num_rows"] == 10 and not small.path(old.key).exists()


# The libraries

def test_load_dataset_learns_the_columns(run, server, api):
    "`datasets` asks `datasets-server.localhost`; here that name leads to this machine, as it does on most."
    png = picture("red")
    made = {"lists": {"train.jsonl": b'{"q": {"t": "x"}, "n": [1]}\n{"q": {"t": "y"}, "n": []}\n', "test.jsonl": b'{"q": {"t": "z"}, "n": []}\n'},
            "shots": {"train/cat/1.png": png, "train/dog/2.png": png}, "bad": {"train.csv": b'a,b\n"\n'}}
    for name, files in made.items():
        api.create_repo(f"you/seen-{name}", repo_type="dataset")
        api.create_commit(f"you/seen-{name}", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="data", repo_type="dataset")
    out = run("""
import json, socket
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: real('127.0.0.1' if str(host).endswith('.localhost') else host, *a, **k)
from datasets import load_dataset
from datasets.utils import _dataset_viewer as viewer
asked, told = [], viewer.get_exported_dataset_infos
def infos(**k):
    try: asked.append(sorted(told(**k)['default']['splits']))
    except Exception as e: asked.append(type(e).__name__); raise
    return told(**k)
viewer.get_exported_dataset_infos = infos
rows = {}
for name in ('lists', 'shots'):
    whole, stream = load_dataset(f'you/seen-{name}'), load_dataset(f'you/seen-{name}', streaming=True)
    assert {k: len(list(v)) for k, v in stream.items()} == {k: v.num_rows for k, v in whole.items()}
    assert {k: v.features for k, v in stream.items()} == {k: v.features for k, v in whole.items()}
    rows[name] = {k: v.num_rows for k, v in whole.items()}
try: load_dataset('you/seen-bad')
except Exception as e: rows['bad'] = type(e).__name__
print(json.dumps([asked, rows]))
""", HF_ENDPOINT=server.url.replace("127.0.0.1", "localhost"))
    asked, rows = json.loads(out.splitlines()[-1])
    assert asked == [["test", "train"]] * 2 + [["train"]] * 2 + ["DatasetViewerError"]
    assert rows == {"lists": {"train": 2, "test": 1}, "shots": {"train": 2}, "bad": "DatasetGenerationError"}


def test_the_other_name(dataset, http, api):
    ask = dataset({"train.csv": b"a\n1\n"})
    r = http.get("/info", params=dict(dataset=ask.id), headers={"Host": "datasets-server.localhost:80"})
    assert r.headers["x-revision"] == api.dataset_info(ask.id).sha and r.json()["dataset_info"]["default"]["splits"]["train"]["num_examples"] == 1
    url = http.get("/parquet", params=dict(dataset=ask.id), headers={"Host": "datasets-server.localhost:80"}).json()["parquet_files"][0]["url"]
    assert url.startswith("http://localhost:80/api/datasets/")
    assert http.get("/info", params=dict(dataset=ask.id), headers={"Host": "datasets-server.evil.example"}).status_code == 421


def tensors(**sizes):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, n in sizes.items():
        head[name] = dict(dtype="F32", shape=[n], data_offsets=[at, at + 4 * n])
        at += 4 * n
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def test_safetensors_headers(api, repo):
    with pytest.raises(NotASafetensorsRepoError):
        api.get_safetensors_metadata(repo)
    index = json.dumps(dict(metadata=dict(total_size=24), weight_map=dict(x="a.safetensors", y="b.safetensors", z="b.safetensors"))).encode()
    files = {"model.safetensors.index.json": index, "a.safetensors": tensors(x=3), "b.safetensors": tensors(y=2, z=1), "part/model.safetensors.index.json": index,
             "part/a.safetensors": tensors(x=9), "part/b.safetensors": tensors(y=9, z=9), "bad.safetensors": b"\xff" * 20, "bad.json": b'{"weight_map": {"x": "bad.safetensors"}}', "list.json": b"[]"}
    api.create_commit(repo, [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="model")
    m, parsed = api.get_sharded_safetensors_metadata(repo), api.get_safetensors_metadata(repo)
    assert m.weight_map == parsed.weight_map and m.metadata == parsed.metadata and m.files_metadata == parsed.files_metadata and m.sharded
    assert api.get_sharded_safetensors_metadata(repo, filename="part/model.safetensors.index.json").files_metadata["a.safetensors"].parameter_count == {"F32": 9}
    assert api.parse_safetensors_file_metadata(repo, "b.safetensors").parameter_count == {"F32": 3}
    with pytest.raises(EntryNotFoundError):
        api.get_sharded_safetensors_metadata(repo, filename="absent.json")
    for name in ("bad.json", "list.json", "a.safetensors"):
        with pytest.raises(BadRequestError, match="no safetensors file|no `weight_map`"):
            api.get_sharded_safetensors_metadata(repo, filename=name)
    api.upload_file(path_or_fileobj=tensors(w=5), path_in_repo="model.safetensors", repo_id=repo)
    assert api.get_safetensors_metadata(repo, revision="main").parameter_count == {"F32": 5}


# The page

ODD = {SCRIPT: [SCRIPT, None, "long " * 200] * 20, "n": range(60), "'\"><img src=x onerror=window.hacked=2>": [{"a": "<b>"}] * 60}


def test_the_page_of_rows(dataset, http):
    ask = dataset({"train.parquet": parquet(ODD), "b.csv": b'a,b\n"\n'}, "configs: [{config_name: '<i>\"x', data_files: train.parquet}, {config_name: broken, data_files: b.csv}]")
    page = http.get(f"/datasets/{ask.id}/viewer")
    assert page.status_code == 200 and "<script" not in page.text and not re.search(r"<(b|i|img)[ >]", page.text.split('class="tabs"')[1]) and page.text.count("&lt;script&gt;") == 18 and "Rows 1 to 50 of 60" in page.text
    assert '<span class="null">null</span>' in page.text and "<details>" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    last = http.get(f"/datasets/{ask.id}/viewer", params=dict(p=1)).text
    assert "Rows 51 to 60 of 60" in last and 'rel="next"' not in last
    found = http.get(f"/datasets/{ask.id}/viewer", params=dict(q="LONG")).text
    assert "Rows 1 to 20 of 20" in found and http.get(f"/datasets/{ask.id}/viewer", params=dict(q="zz")).text.count("<tr>") == 0
    assert "cannot be shown" in http.get(f"/datasets/{ask.id}/viewer/broken").text
    assert http.get(f"/datasets/{ask.id}/viewer/moon").status_code == 404 and http.get("/datasets/you/absent/viewer").status_code == 404
    assert http.get(f"/datasets/{ask.id}/viewer", params=dict(p="x")).status_code == 400
    assert f'href="/datasets/{ask.id}/viewer"' in http.get(f"/datasets/{ask.id}").text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_the_page_in_a_browser(dataset, server):
    sync_api = pytest.importorskip("playwright.sync_api")
    rows = dataset({"train.parquet": parquet(ODD)})
    shots = dataset({f"{k}/{i}.png": picture(k) for k in ("red", "blue") for i in range(2)}, name=rows.id + "-shots")
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page, seen = b.new_page(viewport=dict(width=360, height=800), color_scheme="dark"), []
        page.on("console", lambda m: seen.append(m.text))
        page.on("pageerror", lambda e: seen.append(str(e)))
        for u in (f"/datasets/{rows.id}/viewer", f"/datasets/{shots.id}/viewer"):
            page.goto(server.url + u)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("window.hacked") is None and page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator(".rows img").evaluate_all("all => all.every(i => i.naturalWidth == 6)")
        page.goto(server.url + f"/datasets/{rows.id}/viewer")
        page.locator(".rows summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".rows details[open] .pre").first.is_visible()
        page.fill("#rows-q", "long")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=long*")
        assert page.locator(".rows tbody tr").count() == 20 and not seen, seen
        b.close()
