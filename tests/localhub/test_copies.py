"""Copies of repos, and LFS files that leave a history, through the official client."""
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

BIG = [bytes([0, i]) * 20_000 for i in range(4)]


def put(api, repo, **files):
    ops = [CommitOperationAdd(p.replace("__", "/") + ".bin", d) for p, d in files.items()]
    return api.create_commit(repo, ops, commit_message="Put " + ", ".join(files)).oid


def test_duplicate_keeps_history_branches_tags_and_files(apis, repo):
    you, ann = apis["you"], apis["ann"]
    sha = put(you, repo, a=BIG[0])
    you.create_tag(repo, tag="v1")
    you.create_branch(repo, branch="dev")
    put(you, repo, a=BIG[1])
    you.create_commit(repo, [CommitOperationAdd("x", b"1")], commit_message="m", create_pr=True)
    name = f"ann/{repo.split('/')[1]}"
    assert ann.duplicate_repo(repo).repo_id == name
    assert [c.commit_id for c in ann.list_repo_commits(name)] == [c.commit_id for c in you.list_repo_commits(repo)]
    refs = ann.list_repo_refs(name, include_pull_requests=True)
    assert ([b.name for b in refs.branches], [t.name for t in refs.tags], refs.pull_requests) == (["dev", "main"], ["v1"], [])
    assert open(ann.hf_hub_download(name, "a.bin", revision=sha), "rb").read() == BIG[0]
    you.delete_repo(repo)
    assert open(ann.hf_hub_download(name, "a.bin", force_download=True), "rb").read() == BIG[1]


def test_duplicate_asks_for_rights(apis, repo):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.duplicate_repo(repo, to_id="you/stolen")
    with pytest.raises(HfHubHTTPError, match="401"):
        nobody.duplicate_repo(repo, to_id="you/stolen")
    with pytest.raises(HfHubHTTPError, match="409"):
        you.duplicate_repo(repo)
    assert you.duplicate_repo(repo, exist_ok=True).repo_id == repo
    you.update_repo_settings(repo, private=True)
    with pytest.raises(HfHubHTTPError, match="404"):
        ann.duplicate_repo(repo)
    copy = you.duplicate_repo(repo, to_id=f"{repo}-copy").repo_id
    assert you.model_info(copy).private


def test_duplicate_a_space(api):
    api.create_repo("you/app", repo_type="space", space_sdk="static", exist_ok=True)
    copy = api.duplicate_repo("you/app", to_id="you/app-copy", repo_type="space").repo_id
    assert api.space_info(copy).sdk == "static"


def test_lfs_files_leave_history(api, repo):
    put(api, repo, a=BIG[0], deep__er__b=BIG[1])
    api.create_tag(repo, tag="v1", tag_message="Annotated")
    api.create_tag(repo, tag="light")
    put(api, repo, a=BIG[2], c=BIG[3])
    api.create_commit(repo, [CommitOperationDelete("deep/er/b.bin")], commit_message="Drop b")
    files = {f.oid: f for f in api.list_lfs_files(repo)}
    assert sorted(f.filename for f in files.values()) == ["a.bin", "a.bin", "c.bin", "deep/er/b.bin"]
    assert {f.ref for f in files.values()} == {"refs/heads/main"}
    old = [f for f in files.values() if f.filename == "deep/er/b.bin"]
    before = [c.title for c in api.list_repo_commits(repo)]
    api.permanently_delete_lfs_files(repo, old)
    assert len(list(api.list_lfs_files(repo))) == 3
    assert [c.title for c in api.list_repo_commits(repo)] == before
    for tag in ("v1", "light"):
        assert api.list_repo_files(repo, revision=tag) == [".gitattributes", "a.bin"]
        assert open(api.hf_hub_download(repo, "a.bin", revision=tag), "rb").read() == BIG[0]
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download(repo, "deep/er/b.bin", revision=tag)
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "a.bin", "c.bin"]
    assert api.model_info(repo).sha == api.list_repo_commits(repo)[0].commit_id


def test_lfs_files_leave_the_list_only(api, repo):
    sha = put(api, repo, a=BIG[0])
    api.permanently_delete_lfs_files(repo, list(api.list_lfs_files(repo)), rewrite_history=False)
    assert api.list_repo_commits(repo)[0].commit_id == sha
    assert list(api.list_lfs_files(repo)) == []


def test_a_stranger_neither_lists_nor_deletes(apis, repo):
    put(apis["you"], repo, a=BIG[0])
    files = list(apis["you"].list_lfs_files(repo))
    with pytest.raises(HfHubHTTPError, match="403"):
        list(apis["ann"].list_lfs_files(repo))
    with pytest.raises(HfHubHTTPError, match="403"):
        apis["ann"].permanently_delete_lfs_files(repo, files)


@pytest.mark.parametrize("path,body", [
    ("duplicate", {}), ("duplicate", {"repository": "no-namespace"}), ("duplicate", {"repository": "you/a--b"}),
    ("duplicate", {"repository": "you/z", "visibility": "secret"}), ("lfs-files/batch", {}), ("lfs-files/batch", {"deletions": {"sha": "x"}}),
    ("lfs-files/batch", {"deletions": {"sha": [1]}}), ("lfs-files/duplicate", {}), ("lfs-files/duplicate", {"target": {}, "files": [1]})])
def test_bad_input(repo, http, path, body):
    r = http.post(f"/api/models/{repo}/{path}", json=body)
    assert (r.status_code, bool(r.headers["x-error-message"])) == (400, True)
