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


def routes(repo, kinds):
    "Every writing route, with the names of a repo in it."
    ns, name = repo.split("/")
    for path, methods, _, kind in (r for rs in all_routes() for r in rs if isinstance(r, tuple)):
        for method in () if kind and kind not in kinds else set(methods) & {"POST", "PUT", "PATCH", "DELETE"}:
            fill = FILL | dict(ns=ns, name=name)
            if "collections" in path: fill |= dict(ns="you")
            yield method, re.sub(r"\{(\w+)(?::path)?\}", lambda m: fill.get(m[1], "x"), path), "{ns}/{name}" in path and "collections" not in path


def walk(hub, repo, headers, kinds=("model", "dataset", "space")):
    client = TestClient(make_app(hub, all_routes()), raise_server_exceptions=False, follow_redirects=False)
    body = BODY | dict(fromRepo=repo, name=repo)
    lines = "\n".join(json.dumps(x) for x in (dict(key="header", value=dict(summary="x")), dict(key="file", value=dict(path="x", content="eA==", encoding="base64"))))
    for method, path, of_repo in routes(repo, kinds):
        for q in ("", "?create_pr=1") if "/commit/" in path else ("",):
            r = client.request(method, path + q, headers=headers, content=lines if "/commit/" in path else json.dumps(body))
            assert r.status_code < 500 or r.status_code == 501, (method, path, r.text)
            yield method, path, of_repo, r


def state(hub):
    tables = [r["name"] for r in hub.db.all("SELECT name FROM sqlite_master WHERE type='table'")]
    rows = {t: sorted(map(str, map(tuple, hub.db.all(f"SELECT * FROM {t}")))) for t in tables if t not in ("sqlite_sequence", "devices")}
    return rows, {r["key"]: hub.store.open(r["key"]).refs() for r in hub.db.all("SELECT key FROM repos")}


@pytest.mark.parametrize("who,repo", [("read", "you/public"), ("read", "hfflow/secret"), ("fine", "you/secret"), ("nobody", "you/public")])
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
    for (method, path, of_repo, r), (_, _, _, absent) in zip(*(walk(hub, repo, headers, ["model"]) for repo in ("you/secret", "you/absent"))):
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


# Repos by size, and pictures

def test_the_repos_of_a_person_and_an_organisation(world):
    url, hub, you = world
    you.upload_file(path_or_fileobj=bytes(5000), path_in_repo="w.bin", repo_id="you/public")
    mine, ours = list(you.list_user_repos()), list(you.list_user_repos("hfflow"))
    assert {(r.id, r.type) for r in ours} == {("hfflow/secret", t) for t in ("model", "dataset", "space")} and {r.visibility for r in ours} == {"private"}
    public = next(r for r in mine if (r.id, r.type) == ("you/public", "model"))
    assert public.storage >= 5000 and public.visibility == "public" and 99 < sum(r.storage_percent for r in mine) < 101
    reader = HfApi(url, token=token(hub, ("model", "you/secret", ["repo.content.read"])))
    assert {(r.id, r.type) for r in reader.list_user_repos() if r.visibility == "private"} == {("you/secret", "model")}
    for org, status in (("hfflow", "403"), ("none-such", "403")):
        with pytest.raises(HfHubHTTPError, match=status): list(HfApi(url, token="tok-ann").list_user_repos(org))
    with pytest.raises(HfHubHTTPError, match="401"): list(HfApi(url, token=False).list_user_repos())


MEDIA = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a", "webp": b"RIFF\0\0\0\0WEBPVP8 ", "mp4": b"\0\0\0\x18ftypisom", "mov": b"\0\0\0\x14ftypqt  ", "webm": b"\x1aE\xdf\xa3", "mp3": b"ID3\x04", "wav": b"RIFF\0\0\0\0WAVEfmt "}


@pytest.mark.parametrize("kind", MEDIA)
def test_attachments(world, kind, tmp_path):
    import httpx

    url, hub, you = world
    (tmp_path / f"x.{kind}").write_bytes(MEDIA[kind] + b"data")
    at = you.upload_attachment(tmp_path / f"x.{kind}")
    assert at == you.upload_attachment(tmp_path / f"x.{kind}") and at.startswith(f"{url}/uploads/") and at.endswith(kind)
    r = httpx.get(at, trust_env=False)
    assert r.content == MEDIA[kind] + b"data" and r.headers["x-content-type-options"] == "nosniff" and "sandbox" in r.headers["content-security-policy"]
    d = you.create_discussion("you/public", "With a picture", description=f"![shot]({at})")
    assert f'src="{at[len(url):]}"' in httpx.get(f"{url}/you/public/discussions/{d.num}", trust_env=False).text


@pytest.mark.parametrize("body", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"MZ\x90", b"<html>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n" + bytes(10_000_001)])
def test_what_is_no_picture_is_refused(world, body):
    import httpx

    r = httpx.post(world[0] + "/uploads", content=body, headers={"Authorization": "Bearer tok-you", "Content-Type": "image/png"}, trust_env=False)
    assert r.status_code == (413 if len(body) > 100 else 400)
    for path in ("/uploads/x", "/uploads/..%2Fhub.sqlite3", "/uploads/" + "0" * 64 + ".png"):
        assert httpx.get(world[0] + path, trust_env=False).status_code == 404


# Trusted publishing

@pytest.fixture(scope="module")
def issuer():
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    class Issuer:
        first, other = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in (1, 2))
        curve = ec.generate_private_key(ec.SECP256R1())
        asked, says = [], None

        def sign(self, key=None, alg="RS256", kid="r", **change):
            now = int(time.time())
            claims = dict(iss=self.url, aud=self.aud, sub="repo:acme/train:ref:refs/heads/main", iat=now, nbf=now, exp=now + 300, jti=str(time.time_ns()), repository="acme/train", ref="refs/heads/main",
                          workflow="Publish", workflow_ref="acme/train/.github/workflows/publish.yml@refs/heads/main", environment="release") | change
            return jwt.encode({k: v for k, v in claims.items() if v is not None}, key or self.first, alg, headers=dict(kid=kid))

    me = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            me.asked.append(self.path)
            keys = [jwt.algorithms.RSAAlgorithm.to_jwk(me.first.public_key(), as_dict=True) | dict(kid="r"), jwt.algorithms.ECAlgorithm.to_jwk(me.curve.public_key(), as_dict=True) | dict(kid="e"), dict(kty="oct", k="c2VjcmV0", kid="o")]
            body = json.dumps(dict(keys=keys) if self.path == "/keys" else dict(issuer=me.url, jwks_uri=me.says or f"{me.url}/keys")).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    me.url = f"http://127.0.0.1:{server.server_port}"
    yield me
    server.shutdown()
    server.server_close()


def post(url, path, body, token="tok-you", **kw):
    import httpx

    return httpx.post(url + path, json=body, headers={"Authorization": f"Bearer {token}"} if token else {}, trust_env=False, **kw)


@pytest.fixture(scope="module")
def trusted(world, issuer):
    url, hub, you = world
    issuer.aud = url
    r = post(url, "/api/models/you/secret/trusted-publishers", dict(issuer=issuer.url, repository="acme/train", branch="main", workflow="publish.yml", environment="release"))
    assert r.status_code == 200
    return url, hub, issuer


def test_a_workflow_writes_one_repo_for_an_hour(trusted, tmp_path, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _auth

    url, hub, issuer = trusted
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(_auth, "_OIDC_TOKEN_CACHE", None)
    monkeypatch.setenv("HF_OIDC_RESOURCE", "you/secret")
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", issuer.sign())
    api = HfApi(url)  # the client finds and exchanges the statement by itself
    api.upload_file(path_or_fileobj=b"by a workflow", path_in_repo="made.txt", repo_id="you/secret")
    t = hub.db.one("SELECT * FROM tokens WHERE name LIKE '[OIDC]%'")
    assert t["name"] == "[OIDC] repo:acme/train:ref:refs/heads/main" and 3590 < t["expires"] - time.time() <= 3600 and _auth._OIDC_TOKEN_CACHE["token"].startswith("hf_jwt_")
    for repo, kind in (("you/secret", "dataset"), ("hfflow/secret", "model")):
        with pytest.raises(RepositoryNotFoundError): api.repo_info(repo, repo_type=kind)
    for refused in (lambda: api.create_repo("you/by-workflow"), lambda: api.create_tag("you/public", tag="x"), lambda: api.create_webhook(url=url, watched=[dict(type="user", name="you")])):
        with pytest.raises(HfHubHTTPError, match="403"): refused()
    assert post(url, "/api/models/you/secret/trusted-publishers", dict(repository="evil/x"), _auth._OIDC_TOKEN_CACHE["token"]).status_code == 403
    listed = __import__("httpx").get(f"{url}/api/models/you/secret/trusted-publishers", headers={"Authorization": "Bearer tok-you"}, trust_env=False).json()
    assert listed[0]["lastUsedAt"] and listed[0]["createdBy"] == "you"


def exchange(url, token, resource="you/secret", **change):
    return post(url, "/oauth/token", dict(grant_type="urn:ietf:params:oauth:grant-type:token-exchange", subject_token_type="urn:ietf:params:oauth:token-type:id_token", subject_token=token, resource=resource) | change, None)


def test_elliptic_keys_will_do(trusted):
    url, _, issuer = trusted
    r = exchange(url, issuer.sign(issuer.curve, "ES256", "e"))
    assert r.status_code == 200 and r.json()["token_type"] == "bearer" and r.json()["expires_in"] == 3600 and r.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("change", [dict(aud="https://huggingface.co"), dict(aud=None), dict(aud=[]), dict(exp=1), dict(exp=None), dict(exp="x"), dict(iat=None), dict(iat=2**40), dict(nbf=2**40), dict(sub=None), dict(iss="https://token.actions.githubusercontent.com"),
                                    dict(iss=None), dict(repository="acme/train2"), dict(repository="ACME/train"), dict(repository=["acme/train"]), dict(repository=None), dict(ref="refs/heads/main2"), dict(ref="refs/tags/main"), dict(ref="main"),
                                    dict(workflow_ref="acme/train/.github/workflows/publish.yml.evil@refs/heads/main"), dict(workflow_ref="evil/x/.github/workflows/publish.yml@refs/heads/main"), dict(workflow_ref=None), dict(environment=None), dict(environment="dev"),
                                    dict(iss="\ud800")], ids=str)
def test_claims_must_fit_exactly(trusted, change):
    url, hub, issuer = trusted
    r = exchange(url, issuer.sign(**change))
    assert r.status_code == 400 and r.json()["error"] == "invalid_grant"
    assert r.json() == exchange(url, issuer.sign(), "you/absent").json() == exchange(url, issuer.sign(), "you/public").json()  # no hint at what is registered


def test_forged_statements(trusted):
    import base64
    import hmac

    import jwt
    from cryptography.hazmat.primitives import serialization

    url, _, issuer = trusted
    good = issuer.sign()
    head, body, sig = good.split(".")
    public = issuer.first.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    b64 = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    confused = b64(b'{"alg":"HS256","kid":"r"}') + "." + body  # signed with the public key, as if it were a secret
    confused += "." + b64(hmac.new(public, confused.encode(), "sha256").digest())
    claims = jwt.decode(good, options={"verify_signature": False})
    bad = [issuer.sign(issuer.other), f"{head}.{body}.{sig[:-4]}AAAA", f"{head}.{body}.", jwt.encode(claims, None, "none", headers=dict(kid="r")), confused,
           jwt.encode(claims, "secret" * 8, "HS256", headers=dict(kid="o")), issuer.sign(alg="RS512"), issuer.sign(kid="absent"), issuer.sign(issuer.curve, "ES256", "r"), "x", "x.y.z", "." * 5000, "é"]
    for token in bad:
        r = exchange(url, token)
        assert r.status_code == 400 and r.json()["error"] in ("invalid_grant", "invalid_request"), token[:50]
    assert exchange(url, good).status_code == 200
    assert exchange(url, good).status_code == 400  # used once
    asked = len(issuer.asked)
    for i in range(5): exchange(url, issuer.sign(kid=f"made-up-{i}"))
    assert len(issuer.asked) - asked <= 2  # nobody makes this Hub ask again and again


@pytest.mark.parametrize("change,error", [(dict(subject_token=None), "invalid_request"), (dict(subject_token=7), None), (dict(resource="a/b/c"), "invalid_request"), (dict(resource="kernels/a/b"), "invalid_request"), (dict(subject_token_type="x"), "invalid_request"),
                                          (dict(grant_type="password"), "unsupported_grant_type"), (dict(grant_type=None), "unsupported_grant_type"), (dict(subject_token="\ud800"), None)])
def test_malformed_exchanges(trusted, change, error):
    import httpx

    body = dict(grant_type="urn:ietf:params:oauth:grant-type:token-exchange", subject_token_type="urn:ietf:params:oauth:token-type:id_token", subject_token="x.y.z", resource="you/secret") | change
    r = httpx.post(trusted[0] + "/oauth/token", content=json.dumps(body), headers={"Content-Type": "application/json"}, trust_env=False)
    assert r.status_code == 400 and (error is None or r.json()["error"] == error and r.json()["error_description"])


@pytest.mark.parametrize("body", [{}, dict(repository="acme"), dict(repository=3), dict(repository="a/b", issuer="https://evil.example"), dict(repository="a/b", issuer="http://10.0.0.1"), dict(repository="a/b", issuer="http://127.0.0.1@evil.example"),
                                  dict(repository="a/b", workflow="../x.yml"), dict(repository="a/b", workflow="x"), dict(repository="a/b", branch="a b"), dict(repository="a/b", environment="x\n")])
def test_what_cannot_be_trusted(trusted, body):
    assert post(trusted[0], "/api/models/you/secret/trusted-publishers", body).status_code == 400


def test_a_hub_on_a_network_trusts_no_local_issuer(trusted, monkeypatch):
    url, hub, issuer = trusted
    monkeypatch.setattr(hub, "local", False)
    assert post(url, "/api/models/you/secret/trusted-publishers", dict(repository="a/b", issuer=issuer.url)).status_code == 400


def test_who_leaves_takes_the_trust_along(trusted):
    url, hub, issuer = trusted
    hub.db.add_member("hfflow", "ann", "write")
    assert post(url, "/api/models/hfflow/secret/trusted-publishers", dict(issuer=issuer.url, repository="acme/train"), "tok-ann").status_code == 200
    api = HfApi(url, token=exchange(url, issuer.sign(), "hfflow/secret").json()["access_token"])
    api.create_tag("hfflow/secret", tag="v1")
    with hub.db.tx() as c: c.execute("DELETE FROM members WHERE user='ann'")
    with pytest.raises(RepositoryNotFoundError): api.create_tag("hfflow/secret", tag="v2")


# Login from a terminal

def test_a_program_logs_in_by_a_code(world, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.errors import DeviceCodeError
    from huggingface_hub.utils._oauth_device import poll_device_token, refresh_access_token, request_device_code

    from hfflow.localhub.tokens import answer_device

    url, hub, _ = world
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(time, "sleep", lambda s: None)
    info = request_device_code()
    assert info["verification_uri_complete"] == f"{url}/device?code={info['user_code']}" and info["interval"] == 5
    ask = lambda: post(url, "/oauth/token", dict(grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=info["device_code"]), None).json()["error"]
    assert (ask(), ask()) == ("authorization_pending", "slow_down")
    assert not answer_device(hub, "WRONG", "you") and answer_device(hub, info["user_code"].lower(), "you") and not answer_device(hub, info["user_code"], "ann")
    token = poll_device_token(info)
    who = HfApi(url, token=token["access_token"]).whoami()
    assert who["name"] == "you" and who["auth"]["accessToken"]["role"] == "write" and token["expires_in"] == 30 * 86400
    with pytest.raises(DeviceCodeError, match="no such code"): poll_device_token(info)
    info = request_device_code()
    answer_device(hub, info["user_code"], "")
    with pytest.raises(DeviceCodeError, match="denied"): poll_device_token(info)
    info = request_device_code()
    with hub.db.tx() as c: c.execute("UPDATE devices SET expires=?", (time.time() - 1,))
    assert not answer_device(hub, info["user_code"], "you")
    with pytest.raises(DeviceCodeError, match="expired"): poll_device_token(info)
    with pytest.raises(DeviceCodeError): refresh_access_token("hf_none")
