"""The web pages: nothing in a repo runs in the browser, and every page answers."""
import base64
import json
import re
import shutil

import httpx
import pytest
from hub_process import TOKENS

from hfflow.localhub.server import running
from hfflow.localhub.signed import sign

CARD = """---
license: mit
tags: ["<script>alert(1)</script>"]
---
# Title

<script>window.hacked=1</script><img src=x.png onerror="window.hacked=2"><a href="javascript:window.hacked=3">click</a>
<iframe src="/"></iframe><style>body{display:none}</style><form action="/logout" method=post><button>x</button></form>
<svg onload="window.hacked=4"></svg>

[md](javascript:window.hacked=5) ![img](fig/a%20b.png) [rel](docs/more.md) <img src="https://evil.example/pixel.png" alt="far">
"""


@pytest.fixture(scope="session")
def shown(api):
    from huggingface_hub import CommitOperationAdd

    api.create_repo("you/shown")
    files = {"README.md": CARD.encode(), "fig/a b.png": base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="), "x.png": b"no image",
             "docs/more.md": b"# More\n[up](../README.md)", "page.html": b"<script>window.hacked=6</script>", "<b>&name.py": b"print('<script>')\n", "w.bin": b"\0" * 99,
             "lineage.json": json.dumps(dict(kind="model", inputs=[dict(kind="dataset", repo_id="you/absent", revision="a" * 40, url="javascript:alert(1)")], code=dict(package="<i>x</i>", commit="b" * 40))).encode()}
    api.create_commit("you/shown", [CommitOperationAdd(p, c) for p, c in files.items()], commit_message="<script>window.hacked=7</script>")
    return "you/shown"


def test_card_is_clean(http, shown):
    r = http.get(f"/{shown}")
    body = r.text.split('<article class="card">')[1].split("</article>")[0]
    assert r.status_code == 200 and not re.search(r"<(script|iframe|style|form|svg|button)|<[^>]*\son\w+=|=.javascript:|evil\.example", body)
    assert 'src="/you/shown/resolve/main/fig/a%20b.png"' in body and 'href="/you/shown/blob/main/docs/more.md"' in body and "far" in body
    assert "script-src" not in r.headers["content-security-policy"] and "default-src 'none'" in r.headers["content-security-policy"]
    assert "<script>" not in r.text and "you/absent" in r.text


def test_files_are_never_a_page(http, shown):
    r = http.get(f"/{shown}/resolve/main/page.html")
    assert r.headers["content-type"].startswith("text/plain") and r.headers["x-content-type-options"] == "nosniff" and "sandbox" in r.headers["content-security-policy"]


PAGES = ["/", "/models", "/datasets", "/spaces", "/you", "/hfflow", "/login", "/search?q=sho", "/you/shown", "/you/shown/tree/main", "/you/shown/tree/main/docs", "/you/shown/blob/main/w.bin", "/you/shown/blob/main/docs/more.md",
         "/you/shown/blob/main/%3Cb%3E%26name.py", "/you/shown/blob/main/fig/a%20b.png", "/you/shown/commits/main", "/you/shown/commit/main"]


@pytest.mark.parametrize("page", PAGES)
def test_page_answers(http, shown, page):
    r = http.get(page, headers={"Accept": "text/html"})
    assert r.status_code == 200 and "<script" not in r.text and "<b>&name" not in r.text


def test_the_page_of_a_kernel(http, api):
    api.create_repo("you/kernel-page", repo_type="kernel")
    r = http.get("/kernels/you/kernel-page", headers={"Accept": "text/html"})
    assert r.status_code == 200 and "you/kernel-page" in r.text


def test_absent_pages(http, shown):
    for p in ("/you/absent", "/absent", "/you/shown/tree/absent", "/you/shown/blob/main/absent", "/datasets/you/shown", "/a/b/c/d"):
        r = http.get(p, headers={"Accept": "text/html"})
        assert r.status_code == 404 and "<!doctype html>" in r.text


def test_an_address_signed_for_one_thing_opens_no_other(tmp_path):
    with running(tmp_path, ["you:" + TOKENS["you"]]) as (url, hub):
        signed, oid = sign(hub, oid="0" * 64, size=1), "0" * 64
        for method, path in [("GET", "/login"), ("GET", "/api/viewer/media"), ("GET", f"/api/xet/{oid}"), ("GET", f"/lfs/{oid}"), ("PUT", f"/lfs/{'1' * 64}"), ("POST", f"/lfs/{oid}")]:
            r = httpx.request(method, f"{url}{path}?{signed}")
            assert r.status_code == 403 and "for another object" in r.text, (path, r.text)


def test_login_shows_private_repos(server, api):
    import httpx

    api.create_repo("you/behind-login", private=True)
    with httpx.Client(base_url=server.url, trust_env=False) as c:
        assert c.get("/you/behind-login").status_code == 404 and "behind-login" not in c.get("/you").text
        assert c.post("/login", data=dict(token="wrong")).status_code == 401
        r = c.post("/login", data=dict(token=TOKENS["you"]))
        assert r.status_code == 303 and "HttpOnly" in r.headers["set-cookie"] and TOKENS["you"] not in r.headers["set-cookie"]
        assert c.get("/you/behind-login").status_code == 200 and "behind-login" in c.get("/you").text
        assert c.get("/api/models/you/behind-login").status_code == 401  # the API wants a token
        assert c.post("/api/repos/create", json=dict(name="forged")).status_code == 401
        c.post("/logout")
        assert c.get("/you/behind-login").status_code == 404


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_in_a_browser(server, shown):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        seen = []
        page = b.new_page(viewport=dict(width=360, height=800), color_scheme="dark")
        page.on("console", lambda m: seen.append(m.text))
        page.on("pageerror", lambda e: seen.append(str(e)))
        for u in ["/", "/you/shown", "/you/shown/tree/main", "/you/shown/commit/main", "/you/shown/blob/main/%3Cb%3E%26name.py", "/models"]:
            page.goto(server.url + u)
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, u
        assert not seen, seen
        page.goto(server.url + "/you/shown")
        page.fill("#q", "shown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search*")
        assert page.locator("a.item").count() == 1
        b.close()
