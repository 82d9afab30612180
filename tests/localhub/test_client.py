"""The Hub through the official client."""
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hub_process import TOKENS

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi  # noqa: E402
from huggingface_hub.errors import (  # noqa: E402
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def test_whoami(apis, server):
    me = apis["you"].whoami()
    assert (me["name"], me["type"], [o["name"] for o in me["orgs"]]) == ("you", "user", ["hfflow"])
    assert me["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(HfHubHTTPError) as e:
        HfApi(endpoint=server.url, token="wrong").whoami()
    assert e.value.response.status_code == 401


@pytest.mark.parametrize("kind", ["model", "dataset", "space", "kernel"])
@pytest.mark.parametrize("owner", ["you", "hfflow"])
def test_life_of_a_repo(api, kind, owner):
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    id = f"{owner}/life-{kind}"
    url = api.create_repo(id, repo_type=kind, **sdk)
    assert (url.repo_id, url.repo_type) == (id, kind)
    assert api.create_repo(id, repo_type=kind, exist_ok=True, **sdk) == url
    with pytest.raises(HfHubHTTPError) as e:
        api.create_repo(id, repo_type=kind, **sdk)
    assert e.value.response.status_code == 409
    assert api.list_repo_files(id, repo_type=kind) == [".gitattributes"] + ["README.md"] * (kind == "space")
    assert [c.title for c in api.list_repo_commits(id, repo_type=kind)] == ["initial commit"]
    assert api.repo_info(id.upper() if kind == "model" else id, repo_type=kind).id == id
    api.delete_repo(id, repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(id, repo_type=kind)
    api.delete_repo(id, repo_type=kind, missing_ok=True)


def test_foreign_namespace(apis):
    for who in ("ann", "nobody"):
        with pytest.raises(HfHubHTTPError) as e:
            apis[who].create_repo("hfflow/not-mine")
        assert e.value.response.status_code in (401, 403)


def test_upload_and_download(api, repo, tmp_path):
    big = os.urandom(300_000)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "weights.safetensors").write_bytes(big)
    (tmp_path / "in" / "note ü %25.txt").write_text("héllo")
    (tmp_path / "in" / "empty.bin").write_bytes(b"")
    info = api.upload_folder(repo_id=repo, folder_path=tmp_path / "in", commit_message="All", commit_description="of it")
    assert info.oid == api.model_info(repo).sha
    out = api.snapshot_download(repo, local_dir=tmp_path / "out")
    assert (tmp_path / "out/sub/weights.safetensors").read_bytes() == big
    assert (tmp_path / "out/note ü %25.txt").read_text() == "héllo" and out
    by = {s.rfilename: s for s in api.model_info(repo, files_metadata=True).siblings}
    assert by["sub/weights.safetensors"].lfs.sha256 == hashlib.sha256(big).hexdigest()
    assert by["note ü %25.txt"].lfs is None
    assert by["note ü %25.txt"].blob_id == hashlib.sha1(b"blob 6\0" + "héllo".encode()).hexdigest()
    meta = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, "sub/weights.safetensors", endpoint=api.endpoint))
    assert (meta.commit_hash, meta.etag, meta.size) == (info.oid, hashlib.sha256(big).hexdigest(), len(big))
    c = api.list_repo_commits(repo)[0]
    assert (c.title, c.message, c.authors) == ("All", "of it", ["you"])


def test_unchanged_files_make_no_commit(api, repo):
    api.upload_file(repo_id=repo, path_or_fileobj=b"same", path_in_repo="a.txt")
    sha = api.model_info(repo).sha
    api.upload_file(repo_id=repo, path_or_fileobj=b"same", path_in_repo="a.txt")
    assert api.model_info(repo).sha == sha


def test_lfs_outside_the_patterns_is_tracked(api, repo):
    api.upload_file(repo_id=repo, path_or_fileobj=b"\x00\x01\x02" * 100, path_in_repo="odd name.dat")
    text = open(api.hf_hub_download(repo, ".gitattributes")).read()
    assert text.endswith("odd[[:space:]]name.dat filter=lfs diff=lfs merge=lfs -text\n")


def test_copy_delete_and_tree(api, repo):
    api.create_commit(repo, [CommitOperationAdd("a/b/c.txt", b"1"), CommitOperationAdd("a/w.bin", b"\0" * 50), CommitOperationAdd("z.txt", b"2")], commit_message="x")
    api.create_commit(repo, [CommitOperationCopy("a/w.bin", "copy.bin"), CommitOperationDelete("a/b/", is_folder=True)], commit_message="y")
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "a/w.bin", "copy.bin", "z.txt"]
    entries = {e.path: e for e in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert entries["copy.bin"].lfs.size == 50 and entries["copy.bin"].last_commit.title == "y"
    assert entries["z.txt"].last_commit.title == "x" and hasattr(entries["a"], "tree_id")
    assert [e.path for e in api.get_paths_info(repo, ["z.txt", "nope", "a"])] == ["z.txt", "a"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(repo, "nope"))
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.delete_file("nope", repo)
    with pytest.raises(BadRequestError):
        api.upload_file(repo_id=repo, path_or_fileobj=b"1", path_in_repo="z.txt/below")


def test_gitignore(api, repo, tmp_path):
    for p in (".gitignore", "keep.txt", "build/x.txt", "a.log"):
        (tmp_path / p).parent.mkdir(exist_ok=True)
        (tmp_path / p).write_text("*.log\nbuild/\n")
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", ".gitignore", "keep.txt"]


def test_branches_tags_history(api, repo):
    first = api.model_info(repo).sha
    api.create_branch(repo, branch="dev/x")
    api.upload_file(repo_id=repo, path_or_fileobj=b"1", path_in_repo="a.txt", revision="dev/x")
    assert api.list_repo_files(repo) == [".gitattributes"] and "a.txt" in api.list_repo_files(repo, revision="dev/x")
    api.create_tag(repo, tag="v1", revision="dev/x", tag_message="first")
    assert "a.txt" in api.list_repo_files(repo, revision="v1")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [b.name for b in refs.branches] == ["dev/x", "main"] and [t.name for t in refs.tags] == ["v1"] and refs.pull_requests == []
    assert refs.tags[0].target_commit == refs.branches[0].target_commit != first
    for again in (lambda: api.create_branch(repo, branch="dev/x"), lambda: api.create_tag(repo, tag="v1")):
        with pytest.raises(HfHubHTTPError) as e:
            again()
        assert e.value.response.status_code == 409
    api.create_branch(repo, branch="dev/x", exist_ok=True)
    with pytest.raises(HfHubHTTPError) as e:
        api.delete_branch(repo, branch="main")
    assert e.value.response.status_code == 403
    with pytest.raises(BadRequestError):
        api.create_tag(repo, tag="bad name..")
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="dev/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="dev/x")
    assert api.model_info(repo, revision=first[:7]).sha == first
    api.upload_file(repo_id=repo, path_or_fileobj=b"1", path_in_repo="b.txt")
    api.super_squash_history(repo)
    assert len(api.list_repo_commits(repo)) == 1 and "b.txt" in api.list_repo_files(repo)


def test_errors_become_the_clients_classes(api, repo):
    for call, cls in [
        (lambda: api.model_info("you/absent"), RepositoryNotFoundError),
        (lambda: api.model_info("absent"), RepositoryNotFoundError),
        (lambda: api.hf_hub_download("you/absent", "x"), RepositoryNotFoundError),
        (lambda: api.hf_hub_download("absent", "x"), RepositoryNotFoundError),
        (lambda: api.hf_hub_download(repo, "absent"), RemoteEntryNotFoundError),
        (lambda: api.hf_hub_download(repo, ".gitattributes", revision="absent"), RevisionNotFoundError),
        (lambda: api.upload_file(repo_id=repo, path_or_fileobj=b"1", path_in_repo="x", revision="absent"), RevisionNotFoundError),
        (lambda: api.model_info(repo, expand=["nonsense"]), BadRequestError),
        (lambda: api.upload_file(repo_id=repo, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md"), (BadRequestError, ValueError)),
    ]:
        with pytest.raises(cls):
            call()
    from pathlib import Path

    from huggingface_hub import constants

    marks = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / ".no_exist" / api.model_info(repo).sha / "absent"
    assert marks.is_file()


def test_two_writers_on_one_parent(api, repo):
    parent = api.model_info(repo).sha

    def write(i):
        try:
            return api.create_commit(repo, [CommitOperationAdd(f"{i}.txt", b"%d" % i)], commit_message=str(i), parent_commit=parent).oid
        except HfHubHTTPError as e:
            return e.response.status_code

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(write, range(6)))
    won = [d for d in done if isinstance(d, str)]
    assert len(won) == 1 and done.count(412) == 5
    assert api.model_info(repo).sha == won[0] and len(api.list_repo_commits(repo)) == 2


def test_many_writers_without_parent_lose_nothing(api, repo):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: api.upload_file(repo_id=repo, path_or_fileobj=b"%d" % i, path_in_repo=f"{i}.txt"), range(12)))
    assert len(api.list_repo_files(repo)) == 13 and len(api.list_repo_commits(repo)) == 13


def test_private_repos(apis):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    you.create_repo("you/secret", private=True)
    you.upload_file(repo_id="you/secret", path_or_fileobj=b"\0secret" * 99, path_in_repo="w.bin")
    for api, status in ((ann, 404), (nobody, 401)):
        for call in (api.model_info, lambda r, a=api: a.hf_hub_download(r, "w.bin"), lambda r, a=api: a.list_repo_commits(r), api.delete_repo, lambda r, a=api: a.upload_file(repo_id=r, path_or_fileobj=b"", path_in_repo="x")):
            with pytest.raises(RepositoryNotFoundError) as e:
                call("you/secret")
            assert e.value.response.status_code in (status, 404)
        assert "you/secret" not in [m.id for m in api.list_models()]
    assert "you/secret" in [m.id for m in you.list_models(author="you")]
    you.update_repo_settings("you/secret", private=False)
    assert ann.model_info("you/secret").private is False
    with pytest.raises(HfHubHTTPError) as e:
        ann.upload_file(repo_id="you/secret", path_or_fileobj=b"1", path_in_repo="x")
    assert e.value.response.status_code == 403
    you.auth_check("you/secret")
    you.delete_repo("you/secret")


def test_a_hash_is_no_key(apis, http, server):
    """Knowing the sha256 of a file in a private repo does not give its bytes."""
    you, ann = apis["you"], apis["ann"]
    data = b"\0private bytes" * 100
    sha = hashlib.sha256(data).hexdigest()
    you.create_repo("you/vault", private=True)
    you.upload_file(repo_id="you/vault", path_or_fileobj=data, path_in_repo="w.bin")
    ann.create_repo("ann/thief")
    header = {"Authorization": f"Bearer {TOKENS['ann']}"}
    import json

    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
    lines = [dict(key="header", value=dict(summary="x")), dict(key="lfsFile", value=dict(path="w.bin", algo="sha256", oid=sha, size=len(data)))]
    r = http.post("/api/models/ann/thief/commit/main", content="\n".join(map(json.dumps, lines)), headers=header)
    assert r.status_code == 400
    ann.upload_file(repo_id="ann/thief", path_or_fileobj=pointer, path_in_repo="p.txt")
    assert http.get("/ann/thief/resolve/main/p.txt", headers=header).content == pointer
    batch = http.post("/ann/thief.git/info/lfs/objects/batch", json=dict(operation="upload", objects=[dict(oid=sha, size=len(data))]), headers=header).json()
    assert "actions" in batch["objects"][0]


def test_gated(apis):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    you.create_repo("you/gated")
    you.update_repo_settings("you/gated", gated="manual")
    for api, status in ((ann, 403), (nobody, 401)):
        assert api.model_info("you/gated").gated == "manual"
        with pytest.raises(GatedRepoError) as e:
            api.hf_hub_download("you/gated", ".gitattributes")
        assert e.value.response.status_code == status
    you.grant_access("you/gated", "ann")
    assert ann.hf_hub_download("you/gated", ".gitattributes")
    assert [r.username for r in you.list_accepted_access_requests("you/gated")] == ["ann"]
    you.cancel_access_request("you/gated", "ann")
    with pytest.raises(GatedRepoError):
        ann.hf_hub_download("you/gated", "README.md")


def test_move(api, repo):
    api.upload_file(repo_id=repo, path_or_fileobj=b"1", path_in_repo="a.txt")
    new = repo.replace("you/", "hfflow/")
    api.move_repo(repo, new)
    assert api.model_info(repo).id == new and api.hf_hub_download(repo, "a.txt")
    other = api.create_repo("you/taken").repo_id
    with pytest.raises(HfHubHTTPError):
        api.move_repo(new, other)


def test_info_of_a_card(api, repo, run):
    import struct

    head = b'{"w":{"dtype":"BF16","shape":[4,6],"data_offsets":[0,48]}}'
    card = "---\nlicense: apache-2.0\nlanguage: en\ntags: [demo]\ndatasets: [you/data]\nbase_model: hfflow/base\n---\n# Card\n\nFirst words.\n"
    api.create_commit(repo, [
        CommitOperationAdd("README.md", card.encode()),
        CommitOperationAdd("config.json", b'{"architectures":["LlamaForCausalLM"],"model_type":"llama"}'),
        CommitOperationAdd("model.safetensors", struct.pack("<Q", len(head)) + head + bytes(48))], commit_message="x")
    i = api.model_info(repo)
    assert (i.library_name, i.pipeline_tag, i.safetensors.total, i.safetensors.parameters) == ("transformers", "text-generation", 24, {"BF16": 24})
    assert {"transformers", "safetensors", "llama", "en", "license:apache-2.0", "demo", "dataset:you/data", "base_model:hfflow/base", "base_model:finetune:hfflow/base"} <= set(i.tags)
    assert i.card_data.license == "apache-2.0" and i.config["model_type"] == "llama"
    e = api.model_info(repo, expand=["sha", "safetensors", "baseModels"])
    assert e.sha == i.sha and e.tags is None
    for found in (api.list_models(filter="base_model:hfflow/base"), api.list_models(filter="text-generation"), api.list_models(filter=["llama", "demo"], author="you"), api.list_models(pipeline_tag="text-generation", search="test_info"), api.list_models(num_parameters="max:1K", search="info_of card")):
        assert repo in [m.id for m in found]
    assert not list(api.list_models(filter=["llama", "absent"]))
    full = [m for m in api.list_models(filter="demo", full=True, cardData=True)][0]
    assert full.card_data.license == "apache-2.0" and "config.json" in [s.rfilename for s in full.siblings]
    assert "license" in api.get_model_tags()
    found = run("from huggingface_hub.inference._providers.hf_inference import _fetch_recommended_models as f; print(f()['text-generation'])")
    assert api.model_info(found.strip()).pipeline_tag == "text-generation"


def test_pages_by_link(api, http):
    ids = [api.create_repo(f"you/page-{i}", repo_type="dataset").repo_id for i in range(7)]
    r = http.get("/api/datasets", params=dict(limit=3, search="page-", sort="createdAt"))
    seen = [d["id"] for d in r.json()]
    while "next" in r.links:
        r = http.get(r.links["next"]["url"])
        seen += [d["id"] for d in r.json()]
    assert seen == ids[::-1]
    assert [d.id for d in api.list_datasets(search="page-", sort="created_at", limit=4)] == ids[:2:-1]


def test_long_folder_is_paged(api, repo):
    api.create_commit(repo, [CommitOperationAdd(f"d/{i:04}.txt", b"%d" % i) for i in range(1200)], commit_message="many")
    assert len(api.list_repo_files(repo)) == 1201


def test_multipart_lfs(apis, tmp_path):
    """Objects above a limit arrive in parts."""
    from hfflow.localhub.server import running
    from hfflow.localhub.wire import Limits

    data = os.urandom(250_000)
    with running(tmp_path, ["you:t"], limits=Limits(part=100_000)) as (url, hub):
        api = HfApi(endpoint=url, token="t")
        api.create_repo("you/parts")
        api.upload_file(repo_id="you/parts", path_or_fileobj=data, path_in_repo="w.bin")
        p = api.hf_hub_download("you/parts", "w.bin", local_dir=tmp_path / "out")
        assert open(p, "rb").read() == data
        assert not list(hub.store.lfs.tmp.iterdir())


def test_filesystem_and_ranges(server, api, repo, http):
    from huggingface_hub import HfFileSystem

    data = bytes(range(256)) * 1000
    api.upload_file(repo_id=repo, path_or_fileobj=data, path_in_repo="d/w.bin")
    fs = HfFileSystem(endpoint=server.url, token=TOKENS["you"])
    assert sorted(fs.ls(repo, detail=False)) == [f"{repo}/.gitattributes", f"{repo}/d"]
    with fs.open(f"{repo}/d/w.bin", block_size=1000) as f:
        f.seek(777)
        assert f.read(50) == data[777:827]
    with fs.open(f"{repo}/new.txt", "w") as f:
        f.write("by fsspec")
    assert fs.read_text(f"{repo}/new.txt") == "by fsspec"
    url = f"/{repo}/resolve/main/d/w.bin"
    for rng, part in (("bytes=0-9", data[:10]), ("bytes=255990-", data[255990:]), ("bytes=-5", data[-5:])):
        r = http.get(url, headers={"Range": rng})
        assert (r.status_code, r.content) == (206, part) and r.headers["content-range"].endswith("/256000")
    assert http.get(url, headers={"Range": "bytes=256000-"}).status_code == 416
    assert http.get(url, headers={"Range": "bytes=0-1,5-6"}).status_code == 200
    r = http.head(url, headers={"Accept-Encoding": "identity"})
    assert r.headers["content-length"] == "256000" and len(r.headers["x-repo-commit"]) == 40 and r.headers["etag"].startswith('"')


def test_likes(api, repo):
    import httpx

    r = httpx.post(f"{api.endpoint}/api/models/{repo}/like", headers={"Authorization": f"Bearer {TOKENS['you']}"}, trust_env=False)
    assert r.status_code == 200 and api.model_info(repo).likes == 1
    assert repo in api.list_liked_repos("you").models and [u.username for u in api.list_repo_likers(repo)] == ["you"]
    api.unlike(repo)
    assert api.model_info(repo).likes == 0


def test_card_push(api, repo):
    from huggingface_hub import ModelCard

    card = ModelCard("---\nlicense: mit\n---\n# Hi\n")
    os.environ["HF_ENDPOINT"] = api.endpoint
    api.upload_file(repo_id=repo, path_or_fileobj=io.BytesIO(str(card).encode()), path_in_repo="README.md")
    assert api.model_info(repo).card_data.license == "mit"
