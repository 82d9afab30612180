"""What a token may do: every route is walked with tokens that may not."""
import json
import re
import time

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from starlette.testclient import TestClient

from hfflow.localhub.server import all_routes, running
from hfflow.localhub.wire import make_app

READS = ("paths-info", "validate-yaml", "git-upload-pack", "xet-read-token")  # change nothing, though they are POST
OPEN_TO_ALL = ("/login", "/logout", "/oauth/")  # before anybody is known
OF_STRANGERS = ("discussions", "like", "ask-access", "preupload", "objects/batch", "verify", "webhooks", "/commit/", "collections", "uploads")
FILL = dict(rev="main", path="README.md", num="1", id="x", oid="0" * 64, status="pending", rest="x", user="you", org="hfflow", owner="you",
            slug="x-0123456789abcdef01234567", item="0" * 24, sha="main")
BODY = dict(name="made", fromRepo="you/public", toRepo="you/renamed", type="model", private=True, visibility="private", gated="auto", title="A title", comment="x",
            content="x", description="x", message="x", status="closed", tag="v9", user="ann", repository="you/copied", operation="upload", namespace="you",
            objects=[dict(oid="1" * 64, size=3)], files=[dict(path="a.txt", size=1, sample="eA==")], deletions=dict(sha=["0" * 64]), target=dict(type="model", name="you/public"),
            watched=[dict(type="user", name="you")], domains=["repo"], url="http://127.0.0.1:9/", item=dict(id="you/public", type="model"), key="K", value="v")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running(tmp_path_factory.mktemp("hub"), ["you:tok-you", "ann:tok-ann"], ["hfflow:you"]) as (url, hub):
        you = HfApi(url, token="tok-you")
        for name in ("you/public", "you/secret", "hfflow/secret"):
            for kind in ("model", "dataset", "space"):
                you.create_repo(name, repo_type=kind, private="secret" in name, **(dict(space_sdk="static") if kind == "space" else {}))
                you.create_discussion(name, "First", description="Hello", repo_type=kind)
        you.create_collection("Mine")
        yield url, hub, you


def token(hub, *scoped, role="fineGrained", user="you", gated=False, **more):
    "A token; scoped by pairs of (type, name, permissions)."
    scopes = None
    if role == "fineGrained":
        ident = lambda type, name: hub.db.find(type, name).key if type in ("model", "dataset", "space") else name
        scopes = dict(scoped=[dict(entity=dict(_id=ident(t, n), type=t, name=n), permissions=p) for t, n, p in scoped], canReadGatedRepos=gated, **{"global": more.pop("everywhere", [])})
    return hub.db.add_token(user, role=role, scopes=scopes, **more)


def routes(repo):
    "Every writing route, with the names of a repo in it."
    ns, name = repo.split("/")
    for path, methods, _, kind in (r for rs in all_routes() for r in rs):
        for method in set(methods) & {"POST", "PUT", "PATCH", "DELETE"}:
            fill = FILL | dict(ns=ns, name=name)
            if "collections" in path: fill |= dict(ns="you")
            yield method, re.sub(r"\{(\w+)(?::path)?\}", lambda m: fill.get(m[1], "x"), path), "{ns}/{name}" in path and "collections" not in path


def walk(hub, repo, headers):
    client = TestClient(make_app(hub, all_routes()), raise_server_exceptions=False, follow_redirects=False)
    body = BODY | dict(fromRepo=repo, name=repo)
    lines = "\n".join(json.dumps(x) for x in (dict(key="header", value=dict(summary="x")), dict(key="file", value=dict(path="x", content="eA==", encoding="base64"))))
    for method, path, of_repo in routes(repo):
        for q in ("", "?create_pr=1") if "/commit/" in path else ("",):
            r = client.request(method, path + q, headers=headers, content=lines if "/commit/" in path else json.dumps(body))
            assert r.status_code < 500 or r.status_code == 501, (method, path, r.text)
            yield method, path, of_repo, r


def state(hub):
    tables = [r["name"] for r in hub.db.all("SELECT name FROM sqlite_master WHERE type='table'")]
    rows = {t: sorted(map(str, map(tuple, hub.db.all(f"SELECT * FROM {t}")))) for t in tables if t not in ("sqlite_sequence", "devices")}
    return rows, {r["key"]: hub.store.open(r["key"]).refs() for r in hub.db.all("SELECT key FROM repos")}


@pytest.mark.parametrize("repo", ["you/public", "you/secret", "hfflow/secret"])
@pytest.mark.parametrize("who", ["read", "fine", "nobody"])
def test_none_of_the_routes_lets_a_reader_write(world, who, repo):
    _, hub, _ = world
    if who != "nobody":
        t = token(hub, role="read") if who == "read" else token(hub, ("user", "you", ["repo.content.read"]), ("org", "hfflow", ["repo.content.read"]))
    before, seen = state(hub), 0
    for method, path, _, r in walk(hub, repo, {} if who == "nobody" else {"Authorization": f"Bearer {t}"}):
        seen += 1
        if any(w in path for w in READS + OPEN_TO_ALL): continue
        assert r.status_code >= 400, (method, path, r.status_code, r.text)
        if who == "nobody" and path.startswith("/api/") and path != "/api/x": assert r.status_code in (400, 401, 404), (method, path, r.status_code)
    assert seen > 100 and state(hub) == before


@pytest.mark.parametrize("who", ["ann", "nobody", "fine"])
def test_a_private_repo_answers_a_stranger_like_an_absent_one(world, who):
    _, hub, _ = world
    t = token(hub, ("user", "you", ["discussion.write", "collection.write"]), everywhere=["discussion.write"]) if who == "fine" else "tok-ann"
    headers = {} if who == "nobody" else {"Authorization": f"Bearer {t}"}
    before = state(hub)
    for (method, path, of_repo, r), (_, _, _, absent) in zip(walk(hub, "you/secret", headers), walk(hub, "you/absent", headers)):
        if not of_repo: continue
        told = lambda r: (r.status_code, r.headers.get("x-error-code"), r.text.replace("absent", "secret"))
        assert r.status_code in ((400, 401, 403, 404, 501) if "objects/batch" not in path else (401, 404)), (method, path, r.status_code)
        assert told(r) == told(absent), (method, path, r.text, absent.text)
    after = state(hub)
    assert after[1] == before[1]


def test_a_stranger_changes_nothing_in_a_public_repo_but_its_discussions(world):
    _, hub, _ = world
    before = state(hub)
    for method, path, _, r in walk(hub, "you/public", {"Authorization": "Bearer tok-ann"}):
        if not any(w in path for w in READS + OPEN_TO_ALL + OF_STRANGERS): assert r.status_code >= 400, (method, path, r.status_code, r.text)
    after = state(hub)
    for t in ("users", "members", "tokens", "moved"): assert after[0][t] == before[0][t]
    heads = lambda s: {k: (r["heads"], r["tags"]) for k, r in s[1].items()}
    assert heads(before) == heads(after)


def test_scopes_of_one_repo(world):
    url, hub, _ = world
    api = HfApi(url, token=token(hub, ("model", "you/secret", ["repo.write"]), name="one repo"))
    info = api.whoami()["auth"]["accessToken"]
    assert (info["role"], info["displayName"], info["fineGrained"]["global"], info["fineGrained"]["canReadGatedRepos"]) == ("fineGrained", "one repo", [], False)
    key = hub.db.find("model", "you/secret").key
    assert info["fineGrained"]["scoped"] == [dict(entity=dict(_id=key, type="model", name="you/secret"), permissions=["repo.write"])]
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="you/secret")
    api.create_tag("you/secret", tag="v1")
    assert [m.id for m in api.list_models(author="you") if m.private] == ["you/secret"] and not [d for d in api.list_datasets(author="hfflow")]
    for repo, kind in (("you/secret", "dataset"), ("hfflow/secret", "model")):
        with pytest.raises(RepositoryNotFoundError): api.repo_info(repo, repo_type=kind)
    assert api.model_info("you/public").id == "you/public"
    for refused in (lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="you/public"), lambda: api.create_repo("you/another"), lambda: api.create_discussion("you/secret", "A title"),
                    lambda: api.move_repo("you/secret", "you/elsewhere"), lambda: api.create_collection("Another"), lambda: api.like("you/public") if hasattr(api, "like") else api.create_collection("x")):
        with pytest.raises(HfHubHTTPError, match="403"): refused()


def test_reading_without_writing_is_403_and_neither_is_404(world):
    url, hub, _ = world
    reader, other = (HfApi(url, token=token(hub, ("org", "hfflow", p))) for p in (["repo.content.read"], ["discussion.write"]))
    assert reader.model_info("hfflow/secret").private
    with pytest.raises(HfHubHTTPError, match="403"): reader.create_branch("hfflow/secret", branch="b")
    with pytest.raises(RepositoryNotFoundError): other.model_info("hfflow/secret")
    assert [m.id for m in reader.list_models(author="hfflow")] == ["hfflow/secret"] and not list(other.list_models(author="hfflow"))


def test_a_scope_follows_its_repo_and_not_its_name(world):
    url, hub, you = world
    you.create_repo("you/old", private=True)
    api = HfApi(url, token=token(hub, ("model", "you/old", ["repo.write"])))
    you.move_repo("you/old", "you/new")
    you.create_repo("you/old", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="you/new")
    with pytest.raises(RepositoryNotFoundError): api.model_info("you/old")


def test_gated_repos_need_their_own_leave(world):
    url, hub, you = world
    you.create_repo("you/gated", exist_ok=True)
    you.update_repo_settings("you/gated", gated="auto")
    you.grant_access("you/gated", "ann")
    read = lambda **kw: HfApi(url, token=token(hub, user="ann", **kw)).auth_check("you/gated")
    read(gated=True)
    read(role="read")
    with pytest.raises(GatedRepoError): read()


def test_an_expired_token_is_told_so(world):
    url, hub, _ = world
    api = HfApi(url, token=token(hub, role="write", expires=time.time() + 1.2))
    assert api.whoami()["name"] == "you"
    time.sleep(1.3)
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as e: api.whoami()
    assert e.value.response.status_code == 401 and e.value.response.headers["x-error-message"] == "Invalid credentials in Authorization header"
    with pytest.raises(HfHubHTTPError, match="401"): api.model_info("you/public")
