"""The settings pages: who may send a form, and what it does."""
import re
import shutil

import pytest
from huggingface_hub import HfApi
from starlette.testclient import TestClient

from hfflow.localhub.server import all_routes, running
from hfflow.localhub.wire import make_app


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running(tmp_path_factory.mktemp("hub"), ["you:tok-you", "ann:tok-ann"], ["team:you"]) as (url, hub):
        yield url, hub, make_app(hub, all_routes())


def browser(app, token=None, raising=True):
    b = TestClient(app, raise_server_exceptions=raising)
    if token: assert b.post("/login", data={"token": token}, follow_redirects=False).status_code == 303
    return b


def mark(page): return re.search('name="csrf" value="([0-9a-f]{64})"', page)[1]


def send(b, path, **form):
    return b.post(path, data={"csrf": mark(b.get("/settings").text)} | form, follow_redirects=False)


def alert(r): return re.search('role="alert">([^<]+)', r.text)[1]


PAGES = ["/settings", "/settings/tokens", "/settings/webhooks", "/device", "/you/mine/settings"]


@pytest.fixture(scope="module", autouse=True)
def mine(world):
    HfApi(world[0], token="tok-you").create_repo("you/mine")


@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_is_sent_to_log_in(world, path):
    _, hub, app = world
    r = browser(app).get(path, follow_redirects=False)
    assert r.status_code == 303 and r.headers["location"] == f"/login?to={path}"
    b = browser(app)
    r = b.post(f"/login?to={path}", data={"token": "tok-you"}, follow_redirects=False)
    assert r.headers["location"] == path and re.search("HttpOnly.*SameSite=strict", r.headers["set-cookie"])
    page = b.get(path)
    assert page.status_code == 200 and "<script" not in page.text and "tok-you" not in page.text and mark(page.text)


@pytest.mark.parametrize("to", ["//evil.example", "/\\evil.example", "https://evil.example", "/\nx", "javascript:x"])
def test_login_leads_nowhere_else(world, to):
    b = browser(world[2])
    assert b.post("/login", params={"to": to}, data={"token": "tok-you"}, follow_redirects=False).headers["location"] == "/"


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_no_other_site_logs_a_browser_in_or_out(world, path):
    r = browser(world[2]).post(path, data={"token": "tok-ann"}, headers={"Origin": "https://evil.example"})
    assert r.status_code == 403 and "set-cookie" not in r.headers


@pytest.mark.parametrize("path", PAGES)
def test_only_this_hubs_own_form_counts(world, path):
    _, hub, app = world
    b, other = browser(app, "tok-you"), browser(app, "tok-ann")
    good = mark(b.get(path).text)
    forms = dict(do="delete", sure="you/mine", fullname="Evil", email="e@e", name="evil", role="write", url="http://127.0.0.1:9", watched="user you", domains="repo", code="x")
    before = [sorted(map(tuple, hub.db.all(f"SELECT * FROM {t}"))) for t in ("users", "tokens", "webhooks", "repos")]
    tries = [({}, {}), ({"csrf": "0" * 64}, {}), ({"csrf": ""}, {}), ({"csrf": mark(other.get("/settings").text)}, {}), ({"csrf": good}, {"Origin": "https://evil.example"}), ({"csrf": good}, {"Origin": "null"}),
             ({"csrf": good}, {"Sec-Fetch-Site": "cross-site"}), ({"csrf": good}, {"Sec-Fetch-Site": "same-site"}), ({"csrf": good}, {"Origin": "http://testserver:81"})]
    for extra, headers in tries: assert b.post(path, data=forms | extra, headers=headers).status_code == 403, (extra, headers)
    assert browser(app).post(path, data=forms | {"csrf": good}).status_code == 401
    token_only = TestClient(app).post(path, data=forms | {"csrf": good}, headers={"Authorization": "Bearer tok-you"})
    assert token_only.status_code == 401
    assert [sorted(map(tuple, hub.db.all(f"SELECT * FROM {t}"))) for t in ("users", "tokens", "webhooks", "repos")] == before
    r = b.post(path, data={"csrf": good, "do": "nothing"}, headers={"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, follow_redirects=False)
    assert r.status_code in (303, 400), r.text


def test_a_forged_cookie_is_nobody(world):
    _, hub, app = world
    b = browser(app, "tok-you")
    text, _, seal = b.cookies["hub"].rpartition(":")
    exp, id = text.split(":")
    for bad in ("", "x", "::", f"{int(exp) + 1}:{id}:{seal}", f"{exp}:{hub.db.caller('tok-ann').id}:{seal}", f"{text}:{'0' * 64}", "ü:ü:ü"):
        raw = TestClient(app, raise_server_exceptions=False).get("/settings", headers={"Cookie": f"hub={bad}".encode("latin1")}, follow_redirects=False)
        assert raw.status_code == 303, bad


@pytest.mark.parametrize("role", ["read", "fineGrained"])
def test_a_browser_can_do_what_its_token_can(world, role):
    _, hub, app = world
    key = hub.db.find("model", "you/mine").key
    scopes = {"scoped": [dict(entity=dict(_id=key, type="model", name="you/mine"), permissions=["repo.content.read"])], "global": [], "canReadGatedRepos": False}
    b = browser(app, hub.db.add_token("you", None, "weak", role, scopes=scopes if role == "fineGrained" else None))
    for path, form in (("/settings", dict(fullname="x", email="a@b")), ("/settings/tokens", dict(do="create", name="x", role="write")), ("/device", dict(code="x", answer="yes")),
                       ("/settings/webhooks", dict(url="http://127.0.0.1:9", watched="user you", domains="repo"))):
        assert send(b, path, **form).status_code == 403, path
    assert b.get("/you/mine/settings").status_code == 403 and send(b, "/you/mine/settings", do="delete", sure="you/mine").status_code == 403
    assert hub.db.find("model", "you/mine")


def test_profile(world):
    _, hub, app = world
    b = browser(app, "tok-you")
    assert send(b, "/settings", fullname="You <b>Yourself</b>", email="you@example.com").status_code == 303
    assert "You &lt;b&gt;Yourself" in b.get("/settings").text and tuple(hub.db.one("SELECT fullname,email FROM users WHERE name='you'")) == ("You <b>Yourself</b>", "you@example.com")
    for bad in (dict(fullname="", email="a@b"), dict(fullname="x" * 101, email="a@b"), dict(fullname="x", email="ab"), dict(fullname="a\x07", email="a@b")):
        assert send(b, "/settings", **bad).status_code == 400


def test_tokens_are_made_shown_once_and_deleted(world):
    url, hub, app = world
    b = browser(app, "tok-you")
    r = send(b, "/settings/tokens", do="create", name="<i>robot</i>", role="fineGrained", days="30", entity=["user you", "model you/mine"], permission=["repo.write", "user.webhooks.read"], everywhere="discussion.write")
    token = re.search('class="secret">([^<]+)', r.text)[1]
    assert r.headers["cache-control"] == "no-store" and token not in b.get("/settings/tokens").text and "<i>robot" not in r.text
    info = HfApi(url, token=token).whoami()["auth"]["accessToken"]
    assert [(s["entity"]["name"], s["permissions"]) for s in info["fineGrained"]["scoped"]] == [("you", ["repo.write", "user.webhooks.read"]), ("you/mine", ["repo.write"])]
    id = hub.db.caller(token).id
    send(browser(app, "tok-ann"), "/settings/tokens", do="delete", id=id)
    assert hub.db.holder(id)
    send(b, "/settings/tokens", do="delete", id=id)
    assert hub.db.holder(id) is None
    for bad in (dict(name="", role="read"), dict(name="x", role="king"), dict(name="x", role="read", days="-1"), dict(name="x", role="read", days="99999"), dict(name="x", role="fineGrained"),
                dict(name="x", role="fineGrained", entity="user ann", permission="repo.write"), dict(name="x", role="fineGrained", entity="model ann/none", permission="repo.write"),
                dict(name="x", role="fineGrained", entity="org you", permission="repo.write"), dict(name="x", role="fineGrained", everywhere="repo.write")):
        r = send(b, "/settings/tokens", do="create", **bad)
        assert r.status_code == 400 and alert(r) and "secret" not in r.text, bad


def test_webhooks(world):
    url, hub, app = world
    b = browser(app, "tok-you")
    assert send(b, "/settings/webhooks", url="http://127.0.0.1:9/x", watched="user you\nmodel you/mine\n", domains=["repo"], secret="s").status_code == 303
    w = HfApi(url, token="tok-you").list_webhooks()[-1]
    assert (w.url, [(i.type, i.name) for i in w.watched], w.domains, w.secret) == ("http://127.0.0.1:9/x", [("user", "you"), ("model", "you/mine")], ["repo"], "s")
    at = f"/settings/webhooks/{w.id}"
    assert browser(app, "tok-ann").get(at).status_code == 404 and send(browser(app, "tok-ann"), at, do="delete").status_code == 404
    send(b, at, do="change", url="http://127.0.0.1:9/y", watched="user you", domains=["repo", "discussion"])
    send(b, at, do="disable")
    w = HfApi(url, token="tok-you").get_webhook(w.id)
    assert (w.url, w.disabled, w.secret) == ("http://127.0.0.1:9/y", True, None) and "disabled" in b.get(at).text
    for bad in (dict(url="x"), dict(watched="you"), dict(watched="car you"), dict(domains="x"), dict(secret="ü")):
        assert send(b, at, **dict(do="change", url="http://127.0.0.1:9/y", watched="user you", domains="repo") | bad).status_code == 400
    assert send(b, at, do="replay", seq="1").status_code == 404 and send(b, at, do="delete").headers["location"] == "/settings/webhooks"
    assert b.get(at).status_code == 404


def test_a_repo_is_changed_renamed_and_deleted(world):
    url, hub, app = world
    HfApi(url, token="tok-you").create_repo("you/page", repo_type="dataset")
    b, ann, at = browser(app, "tok-you"), browser(app, "tok-ann"), "/datasets/you/page/settings"
    assert 'href="/datasets/you/page/settings"' in b.get("/datasets/you/page").text and "/settings" not in ann.get("/datasets/you/page").text.split("repo-head")[1]
    assert ann.get(at).status_code == 403 and send(ann, at, do="delete", sure="you/page").status_code == 403
    send(b, at, do="settings", visibility="private", gated="manual")
    row = hub.db.find("dataset", "you/page")
    assert (row.private, row.gated) == (True, "manual") and ann.get(at).status_code == 404
    assert send(b, at, do="settings", visibility="odd").status_code == 400
    send(b, at, do="trust", issuer="", repository="acme/train", branch="main", workflow="publish.yml")
    shown = b.get(at).text
    assert "acme/train" in shown and "publish.yml" in shown
    assert send(b, at, do="trust", repository="acme").status_code == 400 and send(b, at, do="trust", issuer="https://evil.example", repository="a/b").status_code == 400
    send(b, at, do="untrust", id=hub.db.one("SELECT id FROM publishers")["id"])
    assert hub.db.one("SELECT id FROM publishers") is None
    assert send(b, at, do="move", to="ann/page").status_code == 403 and send(b, at, do="move", to="nonsense").status_code == 400
    assert send(b, at, do="move", to="team/renamed").headers["location"] == "/datasets/team/renamed/settings"
    at = "/datasets/team/renamed/settings"
    r = send(b, at, do="delete", sure="you/page")
    assert r.status_code == 400 and "Nothing was deleted" in alert(r)
    assert send(b, at, do="delete", sure="team/renamed").headers["location"] == "/team" and hub.db.find("dataset", "team/renamed") is None


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_in_a_real_browser(world):
    from playwright.sync_api import sync_playwright

    url, hub, _ = world
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, js in ((1000, True), (360, False)):
            page = b.new_context(viewport={"width": width, "height": 700}, java_script_enabled=js).new_page()
            errors = []
            page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
            page.goto(url + "/settings/tokens")
            page.fill("input[name=token]", "tok-you")
            page.press("input[name=token]", "Enter")
            page.fill("input[name=name]", f"at {width}")
            page.check("input[value=write]")
            page.press("input[name=name]", "Enter")
            token = page.inner_text(".secret")
            assert hub.db.caller(token).token == f"at {width}" and page.url == url + "/settings/tokens"
            for path in PAGES if js else []:
                page.goto(url + path)
                page.set_viewport_size(dict(width=360, height=700))
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            assert not errors
        b.close()
