"""The Space in headless Chromium: type, click, read the answer; nothing leaves this machine and the console stays clean."""
import shutil
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")

import published  # noqa: E402
from hfflow import spaces  # noqa: E402
from hfflow.hub import connect  # noqa: E402

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-default-apps", "--no-first-run", "--no-pings"]
PROMPT, ANSWER = next(iter(published.PAIRS.items()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return published.make(connect().user, tmp_path_factory.mktemp("run")).model


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that notes every request, and every error in the console."""
    page = browser.new_page(viewport=dict(width=1100, height=760))
    page.set_default_timeout(60_000)
    page.requested, page.errors = [], []
    page.on("request", lambda r: page.requested.append(r.url))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    yield page
    page.close()


def outside(page):
    """The requests that left this machine; a Space has a host of its own below localhost."""
    return [u for u in page.requested if urlsplit(u).scheme not in ("data", "blob") and urlsplit(u).hostname != "127.0.0.1" and not urlsplit(u).hostname.endswith(".localhost")]


def wide(page):
    """How many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_type_click_and_read(model, page, tmp_path):
    folder = spaces.build(model, tmp_path / "space", title="Flow writer", about="Say which run you want; get its flow.yaml.")
    with spaces.start(folder) as app:
        page.goto(app.url)
        page.get_by_label("Your request").fill(PROMPT)
        page.get_by_role("button", name="Ask").click()
        page.wait_for_function("document.querySelector('#note').innerText.includes('Valid YAML')")
        assert page.locator("#answer .cm-content").inner_text().strip() == ANSWER
        assert page.title() == "Flow writer" and page.get_by_role("heading", level=1).inner_text() == "Flow writer"
        footer = page.locator(".where-from").inner_text()
        assert f"{model.repo_id}@{model.short}" in footer and "you/rows@" in footer and "32-bit" in footer
        page.screenshot(path=tmp_path / "space.png", full_page=True)
        assert (tmp_path / "space.png").stat().st_size > 10_000

        other, told = list(published.PAIRS.items())[1]           # an example fills the box
        page.get_by_text(other, exact=True).first.click()
        page.wait_for_function(f"document.querySelector('#request textarea').value == {other!r}")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_function(f"document.querySelector('#answer .cm-content').innerText.trim() == {told!r}")

        page.set_viewport_size(dict(width=375, height=700))
        page.screenshot(path=tmp_path / "narrow.png", full_page=True)
        assert wide(page) <= 0
        assert outside(page) == [] and page.errors == []


def test_static_page_reads_well_wide_and_narrow(model, page, tmp_path):
    with spaces.start(spaces.build(model, tmp_path / "space", sdk="static", title="Flow writer")) as app:
        page.goto(app.url)
        assert page.get_by_role("heading", level=1).inner_text() == "Flow writer"
        assert page.get_by_role("row").count() == 3 and "3" in page.get_by_role("row").nth(2).inner_text()
        page.screenshot(path=tmp_path / "static.png", full_page=True)
        page.set_viewport_size(dict(width=375, height=700))
        assert wide(page) <= 0
        assert outside(page) == [] and page.errors == []
