"""git and git-lfs against a repo of the Hub, both ways."""
import gzip
import os
import shutil
import subprocess

import pytest
from huggingface_hub import CommitOperationAdd
from hub_process import TOKENS

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")
lfs = pytest.mark.skipif(not shutil.which("git-lfs"), reason="needs git-lfs: apt-get install git-lfs")
BIG = bytes(range(256)) * 80_000


@pytest.fixture
def git(tmp_path, server):
    """Runs git as somebody, in a folder; `ok=False` where it has to fail."""
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n name = Ann\n email = ann@example.org\n[init]\n defaultBranch = main\n")

    def run(*args, cwd=tmp_path, ok=True, config=config):
        env = os.environ | dict(GIT_TERMINAL_PROMPT="0", GIT_CONFIG_GLOBAL=str(config), GIT_CONFIG_NOSYSTEM="1", NO_PROXY="127.0.0.1")
        r = subprocess.run(["git", *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
        assert (r.returncode == 0) == ok, r.stdout + r.stderr
        return r.stdout + r.stderr

    run.address = lambda repo, who="you": f"{server.url.replace('://', f'://{who}:{TOKENS[who]}@')}/{repo}"
    return run


def commit(git, work, **files):
    for name, data in files.items():
        path = work / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    git("add", "-A", cwd=work)
    git("commit", "-qm", "Add " + ", ".join(files), cwd=work)


@pytest.mark.parametrize("prefix,kind", [("", "model"), ("datasets/", "dataset"), ("spaces/", "space")])
def test_clone_push_pull_for_every_kind(api, git, tmp_path, prefix, kind):
    name = f"you/git-{kind}"
    api.create_repo(name, repo_type=kind, space_sdk="static" if kind == "space" else None)
    git("clone", "-q", git.address(prefix + name), "work")
    commit(git, tmp_path / "work", a=b"1\n", deep__er__b=b"2\n")
    git("push", "-q", cwd=tmp_path / "work")
    assert api.list_repo_commits(name, repo_type=kind)[0].title == "Add a, deep__er__b"
    assert {"a", "deep/er/b"} < set(api.list_repo_files(name, repo_type=kind))
    api.create_commit(name, [CommitOperationAdd("c", b"3\n")], commit_message="By HTTP", repo_type=kind)
    git("pull", "-q", cwd=tmp_path / "work")
    assert (tmp_path / "work" / "c").read_bytes() == b"3\n"
    sha = git("rev-parse", "HEAD", cwd=tmp_path / "work").strip()
    assert sha == api.repo_info(name, repo_type=kind).sha


def test_many_commits_and_a_shallow_clone(api, repo, git, tmp_path):
    git("clone", "-q", git.address(repo), "work")
    for i in range(30):
        commit(git, tmp_path / "work", **{f"f{i}": os.urandom(3000)})
    git("push", "-q", cwd=tmp_path / "work")
    assert len(api.list_repo_commits(repo)) == 31
    git("clone", "-q", "--depth", "1", git.address(repo) + ".git", "shallow")
    assert len(list((tmp_path / "shallow").glob("f*"))) == 30


def test_tags_branches_and_deletion(api, repo, git, tmp_path):
    work = tmp_path / "work"
    git("clone", "-q", git.address(repo), "work")
    commit(git, work, a=b"1")
    git("tag", "-a", "v1", "-m", "First", cwd=work)
    git("push", "-q", "origin", "main", "HEAD:dev", "v1", cwd=work)
    refs = api.list_repo_refs(repo)
    assert ([b.name for b in refs.branches], [t.name for t in refs.tags]) == (["dev", "main"], ["v1"])
    assert api.model_info(repo, revision="v1").sha == api.model_info(repo).sha
    git("push", "-q", "origin", ":dev", ":v1", cwd=work)
    refs = api.list_repo_refs(repo)
    assert ([b.name for b in refs.branches], refs.tags) == (["main"], [])
    assert "cannot be deleted" in git("push", "origin", ":main", cwd=work, ok=False)


def test_a_stale_push_is_refused_and_a_forced_one_is_not(api, repo, git, tmp_path):
    work = tmp_path / "work"
    git("clone", "-q", git.address(repo), "work")
    api.create_commit(repo, [CommitOperationAdd("x", b"1")], commit_message="Meanwhile")
    commit(git, work, a=b"1")
    assert "rejected" in git("push", cwd=work, ok=False)
    git("fetch", "-q", cwd=work)
    git("push", "-q", "--force", cwd=work)
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "a"]


def test_rights(apis, repo, git, tmp_path):
    work = tmp_path / "work"
    git("clone", "-q", git.address(repo), "work")
    commit(git, work, a=b"1")
    nobody = git.address(repo).replace(f"you:{TOKENS['you']}@", "")
    git("ls-remote", nobody)
    assert "could not read Username" in git("push", nobody, "HEAD:main", cwd=work, ok=False)
    assert "403" in git("push", git.address(repo, "ann"), "HEAD:main", cwd=work, ok=False)
    apis["you"].update_repo_settings(repo, private=True)
    assert "could not read Username" in git("ls-remote", nobody, ok=False)
    assert "not found" in git("ls-remote", git.address(repo, "ann"), ok=False)
    git("ls-remote", git.address(repo))


def test_a_pull_request_is_a_branch(apis, repo, git, tmp_path):
    work = tmp_path / "work"
    pr = apis["ann"].create_pull_request(repo, "By git")
    git("clone", "-q", git.address(repo, "ann"), "work")
    git("fetch", "-q", "origin", f"{pr.git_reference}:mine", cwd=work)
    git("checkout", "-q", "mine", cwd=work)
    commit(git, work, a=b"1")
    git("push", "-q", "origin", f"mine:{pr.git_reference}", cwd=work)
    assert "no right" in git("push", "origin", "mine:main", cwd=work, ok=False)
    d = apis["you"].get_discussion_details(repo, pr.num)
    assert d.events[-1].summary == "Add a" and "+1" in d.diff
    assert "a" not in apis["you"].list_repo_files(repo)


def test_what_a_push_may_not_hold(api, repo, git, tmp_path):
    work = tmp_path / "work"
    git("clone", "-q", git.address(repo), "work")
    commit(git, work, big=b"x" * 10_000_001)
    assert "over 10000000 belong into LFS" in git("push", cwd=work, ok=False)
    git("reset", "-q", "--hard", "origin/main", cwd=work)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
    commit(git, work, p=pointer)
    assert "has not arrived" in git("push", cwd=work, ok=False)
    git("reset", "-q", "--hard", "origin/main", cwd=work)
    commit(git, work, a=b"1")
    assert "only branches, tags" in git("push", "origin", "HEAD:refs/hidden/x", cwd=work, ok=False)
    assert api.list_repo_files(repo) == [".gitattributes"]


@lfs
def test_large_files_both_ways(api, repo, git, tmp_path):
    work = tmp_path / "work"
    git("lfs", "install", "--skip-repo")
    git("clone", "-q", git.address(repo), "work")
    commit(git, work, **{"model.safetensors": BIG})
    git("push", "-q", cwd=work)
    entry = api.get_paths_info(repo, "model.safetensors")[0]
    assert (entry.lfs.size, entry.size) == (len(BIG), len(BIG))
    assert open(api.hf_hub_download(repo, "model.safetensors"), "rb").read() == BIG
    api.upload_file(repo_id=repo, path_in_repo="other.bin", path_or_fileobj=BIG[::-1])
    git("clone", "-q", git.address(repo), "again")
    assert (tmp_path / "again" / "other.bin").read_bytes() == BIG[::-1]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("path,body,status", [
    ("info/refs", None, 403), ("info/refs?service=git-evil", None, 403), ("git-receive-pack", b"zzzz", 400), ("git-receive-pack", b"0000", 200),
    ("git-receive-pack", b"00", 400), ("git-receive-pack", b"0010only one word0000", 400), ("git-receive-pack", b"fff0short", 400)])
def test_bad_input(repo, http, path, body, status):
    r = http.get(f"/{repo}/{path}") if body is None else http.post(f"/{repo}/{path}", content=body)
    assert r.status_code == status


def test_a_broken_pack_moves_nothing(api, repo, http):
    sha = api.model_info(repo).sha
    line = f"{sha} {'1' * 40} refs/heads/main\0report-status"
    r = http.post(f"/{repo}/git-receive-pack", content=f"{len(line) + 4:04x}{line}0000PACKnonsense".encode())
    assert r.status_code == 200 and b"ng refs/heads/main" in r.content
    assert api.model_info(repo).sha == sha


@pytest.mark.parametrize("path,body,status", [("git-receive-pack", gzip.compress(b"0000", mtime=0), 200), ("git-receive-pack", b"no gzip", 400),
                                              ("git-upload-pack", b"no gzip", 400), ("git-upload-pack", gzip.compress(bytes(33 << 20)), 413)])
def test_packed_bodies(repo, http, path, body, status):
    r = http.post(f"/{repo}/{path}", content=body, headers={"Content-Encoding": "gzip"})
    assert r.status_code == status
