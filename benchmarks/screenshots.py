"""Takes the pictures of the page for README.md in a real browser, with the toolkit's model and a sample photo.

    python benchmarks/screenshots.py        # needs: pip install playwright, and Debian's chromium

Writes docs/page.jpg and docs/mixing.jpg.
"""

import shutil
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from Project7 import web
from Project7.studio import Studio

DOCS = ROOT / "docs"
SIZE = {"width": 1000, "height": 680}
MINUTES = 10  # time limit, for slow machines
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a graphics card
CUP = (0.42, 0.36)  # position in the sample, as shares of its sides


def ready(page: Page) -> None:
    page.wait_for_selector('body[data-busy=""]', state="attached")
    page.wait_for_timeout(300)


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    box = page.locator("#pane-a .picture").bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def hint(page: Page, x: float, y: float) -> None:
    """Clicks a place of the photo, and picks the second of the likely colours."""
    page.mouse.click(*place(page, x, y))
    page.click("#swatches button:nth-child(2)")
    ready(page)


def take(page: Page, name: str) -> None:
    page.screenshot(path=DOCS / name, type="jpeg", quality=78)
    print(f"docs/{name}: {(DOCS / name).stat().st_size / 1000:.0f} kB")


def shoot(page: Page) -> None:
    page.click("#sample")
    page.wait_for_selector("#strip .answer:not(.waits)")
    ready(page)
    hint(page, *CUP)
    page.click("#compare")
    page.locator(".divider").fill("330")
    ready(page)
    take(page, "page.jpg")
    page.click("#compare")
    page.emulate_media(color_scheme="dark")
    page.click("#tool-mix")
    page.click('[data-source="3"]')
    page.mouse.move(*place(page, 0.1, 0.15))
    page.mouse.down()
    for x, y in ((0.1, 0.9), (0.25, 0.9), (0.2, 0.15)):
        page.mouse.move(*place(page, x, y), steps=10)
    page.mouse.up()
    ready(page)
    take(page, "mixing.jpg")


def main() -> None:
    server = uvicorn.Server(uvicorn.Config(web.make_app(Studio()), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening, sync_playwright() as started:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(MINUTES * 60_000)
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            shoot(page)
        finally:
            browser.close()
            server.should_exit = True
            thread.join(60)


if __name__ == "__main__":
    main()
