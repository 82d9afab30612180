"""Photographs for the pages: run a page, open in Chromium what it made, and keep the picture, light and dark, in `nbs/images/`.

    python tests/photographs.py            all pages (or: make pictures)
    python tests/photographs.py 00_start   one page

What is photographed stands in `tests/photographs/PAGE.toml`, one table for each picture:

    [[shot]]
    name = "start-model"                                # -> nbs/images/start-model-light.png and start-model-dark.png
    after = "trainer.push_to_hub()"                     # text that one cell of the page holds: the picture is taken when it has run
    url = "me.repo_url('model', f'{you}/reviews-model')"  # an expression of the page's own names
    width = 1000                                        # of the window, in pixels; and height, of the picture
    height = 700
    steps = [["fill", "Your sentence", "A fine film."], ["click", "Submit"], ["wait", "text=positive"]]   # optional; also ["open", "text=..."] clicks any selector
    frame = "iframe"                                    # optional: the steps happen in this frame
    crop = "main"                                       # optional: only this element
    token = "os.environ['HF_TOKEN']"                    # optional: an expression; who looks, where a page is not for everybody
"""
import asyncio
import io
import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOTS, IMAGES = ROOT/"tests/photographs", ROOT/"nbs/images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-default-apps", "--no-first-run", "--no-pings", "--hide-scrollbars"]
SCALE = 1.5          # pixels of the picture for one of the page: sharp on a phone


def shots(page):
    "The pictures of a page, as they stand in its file."
    file = SHOTS/f"{page}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["shot"] if file.exists() else []


async def act(where, steps):
    "Do what a person would: fill, click, open, wait."
    for what, *rest in steps:
        if what == "fill": await where.get_by_label(rest[0]).first.fill(rest[1])
        elif what == "click": await where.get_by_role("button", name=rest[0]).first.click()
        elif what == "open": await where.locator(rest[0]).first.click()
        elif what == "wait": await where.locator(rest[0]).first.wait_for()
        else: raise ValueError(f"{what!r} is no step: fill, click, open or wait")


def small(png):
    "The same picture with at most 256 colours."
    from PIL import Image
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


async def photograph(browser, url, shot, folder, token=None):
    "Two pictures of one address: the names of their files."
    files = []
    for scheme in ("light", "dark"):
        page = await browser.new_page(viewport=dict(width=shot.get("width", 1000), height=shot.get("height", 700)),
                                      color_scheme=scheme, device_scale_factor=SCALE)
        page.set_default_timeout(90_000)
        if token: await page.set_extra_http_headers({"authorization": f"Bearer {token}"})
        dark = f"{'&' if '?' in url else '?'}__theme=dark" if scheme == "dark" and shot.get("gradio") else ""   # Gradio asks its address
        await page.goto(url + dark, wait_until="networkidle")
        await act(page.frame_locator(shot["frame"]) if "frame" in shot else page, shot.get("steps", []))
        await page.wait_for_timeout(400)
        png = await (page.locator(shot["crop"]).first if "crop" in shot else page).screenshot()
        files.append(folder/f"{shot['name']}-{scheme}.png")
        files[-1].write_bytes(small(png))
        await page.close()
    return files


async def run_page(page, browser, folder):
    "Run a page in a kernel, and take its pictures on the way."
    import nbformat
    from nbclient import NotebookClient
    todo = shots(page)
    nb = nbformat.read(ROOT/f"nbs/{page}.ipynb", 4)
    where = tempfile.mkdtemp()
    client, made = NotebookClient(nb, timeout=600, resources={"metadata": {"path": where}}), []
    async with client.async_setup_kernel():
        for i, cell in enumerate([*nb.cells]):
            await client.async_execute_cell(cell, i)
            for shot in [s for s in todo if cell.cell_type == "code" and s["after"] in cell.source]:
                todo.remove(shot)
                nb.cells.append(nbformat.v4.new_code_cell(f"print({shot['url']}, {shot.get('token', '')})"))
                url, *token = (await client.async_execute_cell(nb.cells[-1], len(nb.cells) - 1))["outputs"][0]["text"].split()
                nb.cells.pop()
                made += await photograph(browser, url, shot, folder, *token)
                print(page, shot["name"], flush=True)
    shutil.rmtree(where)
    if todo: raise SystemExit(f"{page}: no cell holds {todo[0]['after']!r}; put the text of one into `after` in {SHOTS/page}.toml")
    return made


async def main(pages, folder=IMAGES):
    from playwright.async_api import async_playwright
    if not CHROMIUM: raise SystemExit("Photographs need Chromium: apt-get install chromium")
    folder.mkdir(exist_ok=True)
    os.environ["HFFLOW_HOME"] = os.environ.get("HFFLOW_HOME") or tempfile.mkdtemp(prefix="hfflow-photographs-")
    async with async_playwright() as p:
        browser = await p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        for page in pages: await run_page(page, browser, folder)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or sorted(f.stem for f in SHOTS.glob("*.toml"))))
