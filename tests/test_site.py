"""The rendered site, where Quarto has made it (`make docs`): links, anchors, pictures, axe, and a phone's width."""
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[1]/"_docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not (SITE/"index.html").exists(), reason="the site is not rendered: make docs, where Quarto is")


class Page(HTMLParser):
    "Links, anchors and pictures of a page."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.bare = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "img" and "alt" not in a: self.bare.append(a.get("src"))


@pytest.fixture(scope="module")
def pages(): return {p: Page(p) for p in SITE.rglob("*.html")}


def test_every_link_leads_to_a_page_and_every_anchor_to_a_place(pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc or link.startswith("#") and len(link) == 1: continue
            base = SITE if to.path.startswith("/") else path.parent
            target = (base/unquote(to.path.removeprefix("/hfflow").lstrip("/"))).resolve() if to.path else path
            if target.is_dir(): target /= "index.html"
            if not target.exists(): dead.append(f"{path.relative_to(SITE)}: {link}")
            elif to.fragment and target.suffix == ".html" and unquote(to.fragment) not in pages[target].ids: dead.append(f"{path.relative_to(SITE)}: {link} (no such place)")
    assert not dead, "\n".join(dead[:40])


def test_every_picture_is_described(pages):
    assert not [f"{p.name}: {src}" for p, page in pages.items() for src in page.bare]


def test_nothing_is_left_unrendered(pages):
    for path in pages:
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        for raw in ("{{<", ":::", "{.button}", "<!-- hero"): assert raw not in text, f"{path.name}: {raw}"


def test_what_belongs_to_a_site_is_there():
    index = (SITE/"index.html").read_text(encoding="utf-8")
    for part in ('property="og:image"', 'name="twitter:card"', 'rel="icon"', "hfflow"): assert part in index, part
    for file in ("llms.txt", "404.html", "favicon.svg", "search.json"): assert (SITE/file).exists(), file


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM: pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.mark.parametrize("name", sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html")))
def test_a_page_fits_a_phone_and_axe_finds_nothing_serious(name, browser):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport=dict(width=360, height=760), color_scheme=scheme)
        page.goto((SITE/name).as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} pixels wider than a phone"
        page.add_script_tag(path=str(axe))
        found = page.evaluate("axe.run().then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes[0].html.slice(0, 120)))")
        assert not found, f"{name}, {scheme}: {found}"
        page.close()
