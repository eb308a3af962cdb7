"""The page in a real browser, on a real server: what a person does there by mouse, by keyboard and on a phone."""

import base64
import io
import re
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image, ImageColor

from Project7 import color, model_folder, web
from Project7.checkpoints import save_checkpoint
from Project7.config import RunConfig
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.provenance import read_provenance
from Project7.studio import Studio
from Project7.training_config import DataConfig

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

KINDS = {
    "bold": DiffusionConfig(features=(8, 16), time_dim=16, hints=True, timesteps=50),
    "calm": RegressionConfig(model_channels=8, channel_multipliers=(1, 2)),  # one answer, nearly gray
    "faded": RegressionConfig(model_channels=8, channel_multipliers=(1, 2), outputs="lab"),  # changes lightness too
}
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
    "--disable-gpu-rasterization",
]  # WebGL without a graphics card


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        config = RunConfig(model=kind, data=DataConfig(image_size=32))
        (folder / name).mkdir()
        weights = build_model(kind).state_dict()
        checkpoint = {"model_state_dict": weights, "config": config.model_dump(mode="json")}
        save_checkpoint(folder / name / "best_model.pth", checkpoint)
        model_folder.write_config(model_folder.ModelFolder(folder / name), config)
    server = uvicorn.Server(uvicorn.Config(web.make_app(Studio(folder, device="cpu")), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page; afterwards no error may have occurred in it, and no request may have gone to another host."""
    faults, contexts = [], []

    def open_page(**settings):
        settings = {"viewport": {"width": 1200, "height": 800}} | settings
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on(
            "request", lambda request: request.url.startswith((address, "blob:", "data:")) or faults.append(request.url)
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "422" not in fault] == []  # the browser reports refused files as well


def photo(tmp_path: Path, height: int = 90, width: int = 120) -> Path:
    """A photo with a light and a dark half, each a little uneven."""
    y, x = np.mgrid[:height, :width]
    levels = np.where(x < width // 2, 80, 170) + 6 * np.sin(x / 9) + 6 * np.cos(y / 7)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "old.png")
    return tmp_path / "old.png"


def upload(page, file: Path, model: str = "calm") -> None:
    page.select_option("#model", model)
    page.set_input_files("#file", file)
    page.wait_for_selector("#strip .answer:not(.waits)")
    ready(page)


def ready(page) -> None:
    page.wait_for_selector('body[data-busy=""]', state="attached")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def shown(page, pane: str = "#pane-a") -> np.ndarray:
    """The content of the canvas, (H, W, 3)."""
    url = page.evaluate(f"() => document.querySelector('{pane} .picture').toDataURL()")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def place(page, x: float, y: float, size=(120, 90)) -> tuple[float, float]:
    """The position on the screen of a pixel of the photo."""
    box = page.locator("#pane-a .picture").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / size[0], box["y"] + (y + 0.5) * box["height"] / size[1]


def hint(page, x: int, y: int) -> str:
    """Clicks a place and picks a colour by its name in the picker."""
    page.mouse.click(*place(page, x, y))
    page.wait_for_selector("#swatches button")
    box = page.locator("#picker").bounding_box()
    page.mouse.click(box["x"] + 0.62 * box["width"], box["y"] + 0.4 * box["height"])
    page.wait_for_selector(".mark:not(.open)")
    ready(page)
    return re.search("#[0-9a-f]{6}", page.get_attribute(".mark", "aria-label"))[0]


def save(page, to: Path, kind: str = "full", *, mark: bool = False) -> Path:
    page.click("#save summary")
    page.set_checked("#mark", mark)
    with page.expect_download() as download:
        page.click(f"[data-kind={kind}]")
    download.value.save_as(to)
    return to


def slide(page, name: str, value: float) -> None:
    page.evaluate(
        "([name, value]) => { const it = document.getElementById(name); it.value = value;"
        "for (const kind of ['input', 'change']) it.dispatchEvent(new Event(kind)); }",
        [name, value],
    )
    ready(page)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB")).astype(int)


def colourful(picture: np.ndarray) -> float:
    return float(np.ptp(picture, axis=-1).mean())


def ab(rgb) -> torch.Tensor:
    return color.rgb_to_lab(torch.tensor(np.array(rgb), dtype=torch.uint8)[:, None, None])[:, 0, 0]


def test_a_photo_in_colour_with_its_answers_and_before_and_after(visit, tmp_path):
    page = visit()
    assert page.is_visible("#welcome")
    upload(page, photo(tmp_path), "bold")
    tiles = page.locator("#strip .answer")
    assert tiles.count() == 6
    first = shown(page)
    assert colourful(first) > 5
    page.click('[data-seed="3"]')
    ready(page)
    assert page.get_attribute('[data-seed="3"]', "aria-checked") == "true"
    assert np.abs(shown(page) - first).mean() > 1
    page.click("#compare")
    ready(page)
    halves = shown(page)
    assert colourful(halves[:, :55]) == 0
    assert colourful(halves[:, 65:]) > 5
    page.focus(".divider")
    page.keyboard.press("Home")
    ready(page)
    assert colourful(shown(page)[:, :55]) > 5
    page.click("#others")
    ready(page)
    assert page.locator('[data-seed="6"]').is_visible()


@pytest.mark.parametrize("model", KINDS)
def test_what_is_shown_is_what_is_saved(visit, tmp_path, model):
    """The page lays colour onto lightness itself, at every strength and warmth, within 2 levels of the server's
    picture."""
    page = visit()
    upload(page, photo(tmp_path), model)
    hint(page, 30, 45)
    slide(page, "saturation", 1.6)
    slide(page, "warmth", -8)
    off = np.abs(shown(page) - read(save(page, tmp_path / "a.png")))
    assert off.max() <= 2
    assert off.mean() < 0.2


def test_a_hint_at_a_spot_is_in_the_file_and_can_be_undone_and_moved(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path))
    before = shown(page)
    name = hint(page, 30, 45)
    wanted = ab(ImageColor.getrgb(name))
    picture = read(save(page, tmp_path / "a.png"))
    found = ab(picture[45, 30])
    wanted[0] = found[0]
    assert (found - color.into_gamut(wanted[:, None, None])[:, 0, 0]).norm() < 5
    off = np.abs(picture - before).mean(axis=-1)
    assert off[20:70, 10:50].mean() > 8 * off[20:70, 75:].mean()  # its half, not the other one
    off = np.abs(read(save(page, tmp_path / "b.png", mark=True)) - picture).max(axis=-1)
    assert off[60:, 30:].max() > 50  # the word
    assert off[:60].max() == 0
    page.keyboard.press("Control+z")
    ready(page)
    assert page.locator(".mark").count() == 0
    assert np.abs(shown(page) - before).max() <= 1
    page.keyboard.press("Control+Shift+z")
    ready(page)
    assert page.locator(".mark").count() == 1
    page.mouse.move(*place(page, 30, 45))
    page.mouse.down()
    page.mouse.move(*place(page, 90, 45), steps=4)
    page.mouse.up()
    ready(page)
    off = np.abs(shown(page) - before).mean(axis=-1)
    assert off[20:70, 75:].mean() > 8 * off[20:70, 10:45].mean()
    assert page.locator("#history button").count() >= 3


def test_a_stroke_no_colour_and_a_colour_from_the_photo(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path))
    hint(page, 30, 20)
    page.keyboard.press("Escape")
    page.mouse.move(*place(page, 75, 30))
    page.mouse.down()
    page.mouse.move(*place(page, 105, 60), steps=8)
    page.mouse.up()
    page.wait_for_selector("#swatches button")
    assert page.locator("polyline.stroke").count() == 1
    page.click("#dropper")
    page.mouse.click(*place(page, 30, 20))
    ready(page)
    assert colourful(shown(page)[30:60, 75:105]) > 10
    page.click("#gray")
    ready(page)
    assert colourful(shown(page)[40:50, 85:95]) < 12  # it was sepia, with a colorfulness of 27
    page.click("#remove")
    ready(page)
    assert page.locator(".mark").count() == 1


def test_another_answer_is_painted_into_this_one(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path), "bold")
    base = shown(page)
    page.click('[data-seed="2"]')
    ready(page)
    other = shown(page)
    page.click('[data-seed="0"]')
    page.keyboard.press("x")
    page.click('[data-source="2"]')
    slide(page, "brush", 30)
    page.mouse.move(*place(page, 20, 10))
    page.mouse.down()
    page.mouse.move(*place(page, 20, 80), steps=9)
    ready(page)
    assert np.abs(shown(page) - other)[30:60, 12:28].max() <= 2  # while it is being painted
    page.mouse.up()
    ready(page)
    mixed = shown(page)
    assert np.abs(mixed - base)[:, 70:].max() <= 1
    assert np.abs(base - other)[30:60, 12:28].mean() > 3
    saved = save(page, tmp_path / "a.png")
    assert np.abs(read(saved) - mixed).max() <= 2
    page.keyboard.press("Control+z")
    ready(page)
    assert np.abs(shown(page) - base).max() <= 1
    page.focus("#pane-a")
    for key in ("ArrowLeft", "Enter"):  # a cross in the middle of the photo, and a dab there
        page.keyboard.press(key)
    ready(page)
    assert np.abs(shown(page) - other)[40:50, 55:65].max() <= 2
    again = visit()
    again.set_input_files("#file", saved)
    again.wait_for_selector("#strip .answer:not(.waits)")
    ready(again)
    assert np.abs(shown(again) - mixed).max() <= 4
    again.select_option("#model", "calm")  # which has one answer, and nothing to mix
    ready(again)
    assert again.is_disabled("#tool-mix")


def test_levels_change_what_is_shown_and_saved(visit, tmp_path):
    page = visit()
    Image.fromarray(np.asarray(Image.open(photo(tmp_path))) // 4 + 90).save(tmp_path / "dull.png")
    upload(page, tmp_path / "dull.png", "bold")
    assert page.is_visible("#faded")
    dull = shown(page)
    page.select_option("#levels", "auto")
    ready(page)
    raised = shown(page)
    assert np.ptp(raised.mean(axis=-1)) > 2 * np.ptp(dull.mean(axis=-1))
    assert np.abs(raised - read(save(page, tmp_path / "a.png"))).max() <= 2
    page.keyboard.press("Control+z")
    ready(page)
    assert np.abs(shown(page) - dull).max() <= 1


def test_doubt_and_the_best_click(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path), "bold")
    page.check("#unsure")
    page.wait_for_selector(".best")
    assert page.is_visible(".unsure")
    page.click("#best")
    page.wait_for_selector(".mark.open")


def test_two_models_beside_each_other_zoom_together(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path))
    page.click("#two")
    page.select_option("#model-b", "bold")
    page.wait_for_function("() => document.querySelector('#pane-b .picture').width === 120")
    ready(page)
    page.wait_for_timeout(1500)
    assert np.abs(shown(page, "#pane-b") - shown(page)).mean() > 1
    page.click("#zoom-in")
    page.click("#zoom-in")
    transforms = [page.get_attribute(f"{pane} .holder", "style") for pane in ("#pane-a", "#pane-b")]
    assert transforms[0] == transforms[1]
    page.click("#zoom")  # fits again
    assert page.inner_text("#zoom-level") == "Fit"


def test_a_saved_picture_goes_on_from_where_it_was(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path), "bold")
    page.click('[data-seed="2"]')
    ready(page)
    hint(page, 30, 45)
    slide(page, "saturation", 1.3)
    saved = save(page, tmp_path / "a.png")
    made = read_provenance(saved)
    assert (made.seed, made.saturation, len(made.hints), made.model) == (2, 1.3, 1, "bold")
    again = visit()
    again.set_input_files("#file", saved)
    again.wait_for_selector("#strip .answer:not(.waits)")
    ready(again)
    assert again.input_value("#model") == "bold"
    assert again.input_value("#saturation") == "1.3"
    assert again.get_attribute('[data-seed="2"]', "aria-checked") == "true"
    assert again.locator(".mark").count() == 1
    assert np.abs(shown(again) - read(saved)).max() <= 4


def test_the_hints_of_one_photo_colour_others(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path))
    assert not page.is_visible("#all")
    name = hint(page, 30, 45)
    (tmp_path / "bad.png").write_bytes(b"no photo")
    with Image.open(tmp_path / "old.png") as old:
        old.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((150, 112)).save(tmp_path / "other.png")
    page.set_input_files("#all-files", [tmp_path / "other.png", tmp_path / "bad.png"])
    page.wait_for_selector("#album-list li:nth-child(2) button.failed")
    with page.expect_download() as download:
        page.click("#album-save")
    download.value.save_as(tmp_path / "saved.png")
    assert download.value.suggested_filename == "other-colour.png"
    (told,) = read_provenance(tmp_path / "saved.png").hints
    assert told.color == name
    assert told.x > 75  # on the dark half, which is the right one here
    page.click("#album-list li:first-child button")  # goes on from there
    page.wait_for_function("() => document.querySelector('#pane-a .picture').width === 150")
    ready(page)
    assert page.locator(".mark").count() == 1


def test_a_file_that_is_no_photo_is_said_and_loses_nothing(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path))
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_text("<svg></svg>")
    page.set_input_files("#file", tmp_path / "<img src=x onerror=alert(1)>.png")
    page.wait_for_selector("#said.shown:has-text('SVG drawing')")
    assert page.locator("#said img").count() == 0
    assert page.is_visible("#strip .answer")
    page.evaluate("() => document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    page.wait_for_selector("#said.shown:has-text('no file')")


def test_everything_by_keyboard(visit):
    page = visit()
    page.select_option("#model", "calm")
    page.focus("#choose")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the sample
    page.wait_for_selector("#strip .answer:not(.waits)")
    page.focus("#pane-a")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#swatches button")
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "Enter"):  # the picker has the focus
        page.keyboard.press(key)
    page.wait_for_selector(".mark:not(.open)")
    ready(page)
    assert page.locator("#history button").count() == 2
    page.focus(".mark")
    page.keyboard.press("Shift+ArrowDown")
    ready(page)
    assert page.evaluate("() => document.activeElement.className").startswith("mark")
    page.keyboard.press("Delete")
    ready(page)
    assert page.locator(".mark").count() == 0
    focused = "() => document.activeElement.id || document.activeElement.getAttribute('aria-label')"
    page.focus("#history li:first-child button")
    page.keyboard.press("Enter")
    ready(page)
    assert page.evaluate(focused) == "Step 1: First answer"  # the list was drawn anew, and the focus is where it was
    page.focus("#tool-hint")
    page.keyboard.press("ArrowRight")  # over mixing, which a model with one answer has not
    assert (page.evaluate(focused), page.get_attribute("#tool-move", "aria-checked")) == ("tool-move", "true")
    page.select_option("#model", "bold")
    ready(page)
    page.focus('[data-seed="0"]')
    page.keyboard.press("ArrowRight")
    ready(page)
    assert (page.evaluate(focused), page.locator("#strip [tabindex='0']").count()) == ("Answer of seed 1", 1)
    page.focus("#save summary")
    for key in ("Enter", "Tab", "Escape"):
        page.keyboard.press(key)
    assert not page.is_visible("[data-kind=full]")
    assert page.evaluate("() => document.activeElement.tagName") == "SUMMARY"


def test_on_a_phone(visit, tmp_path):
    page = visit(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True, device_scale_factor=2)
    upload(page, photo(tmp_path))
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.touchscreen.tap(*place(page, 30, 45))
    page.wait_for_selector("#swatches button")
    page.tap("#swatches button")
    ready(page)
    assert page.locator(".mark:not(.open)").count() == 1
    fits(page, "#undo", "#open", "#save summary", "#compare", "#two")


def fits(page, *names: str) -> None:
    """Whether all of it is on the screen of a phone, and large enough for a finger."""
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for name in names:
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["height"] >= 36


def drag(page, *places: tuple[float, float]) -> None:
    """A finger that goes from place to place."""
    touch = page.context.new_cdp_session(page)
    for n, (x, y) in enumerate(places):
        kind = "touchMove" if n else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_mixing_and_other_photos_on_a_phone(visit, tmp_path):
    """A photo smaller than the working picture, too: the brush paints what is saved."""
    page = visit(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True, device_scale_factor=2)
    size = (18, 12)
    upload(page, photo(tmp_path, *size[::-1]), "bold")
    base = shown(page)
    page.tap('[data-seed="2"]')
    ready(page)
    other = shown(page)
    page.tap('[data-seed="0"]')
    page.tap("#tool-mix")
    fits(page, "#sources", "#sources .answer:last-child", "#brush", "#tool-move", '[data-source="2"]')
    page.tap('[data-source="2"]')
    slide(page, "brush", 30)
    page.evaluate("() => scrollTo(0, 0)")
    drag(page, *(place(page, 4, y, size) for y in range(1, 11)))
    ready(page)
    mixed = shown(page)
    assert page.evaluate("() => scrollY") == 0  # the finger painted, and moved nothing
    assert np.abs(base - other)[2:10, 3:6].mean() > 3
    assert np.abs(mixed - other)[2:10, 3:6].max() <= 2
    assert np.abs(mixed - base)[:, 11:].max() <= 1
    saved = save(page, tmp_path / "a.png")
    assert np.abs(read(saved) - mixed).max() <= 2
    page.tap("#tool-hint")
    page.touchscreen.tap(*place(page, 14, 6, size))
    page.tap("#swatches button")
    ready(page)
    page.set_input_files("#all-files", [photo(tmp_path), saved])
    page.wait_for_selector("#album-list li:nth-child(2) button:enabled")
    fits(page, "#all", "#album-save", "#album-close", "#album-list li:last-child button")
    page.tap("#album-list li:first-child button")
    page.wait_for_function("() => document.querySelector('#pane-a .picture').width === 120")
    ready(page)


def test_a_large_photo_gets_its_pixels_where_they_are_looked_at(visit, tmp_path):
    page = visit()
    upload(page, photo(tmp_path, 120, 1600))
    width = "() => document.querySelector('#pane-a .picture').width"
    assert page.evaluate(width) == 1280
    page.click("#zoom")  # to 100 %
    page.wait_for_function(f"{width} === 1600")
    ready(page)
    assert np.abs(shown(page) - read(save(page, tmp_path / "a.png"))).max() <= 2


def test_in_the_dark(visit, tmp_path):
    page = visit(color_scheme="dark")
    upload(page, photo(tmp_path))
    for name in ("body", ".stage", "#open"):
        rgb = page.evaluate(f"() => getComputedStyle(document.querySelector('{name}')).backgroundColor")
        assert max(map(int, re.findall(r"\d+", rgb)[:3])) < 70
    ink = page.evaluate("() => getComputedStyle(document.body).color")
    assert min(map(int, re.findall(r"\d+", ink)[:3])) > 200


@pytest.mark.slow
def test_the_documentation_of_the_api(visit, address):
    page = visit()
    page.goto(address + "docs")
    page.wait_for_selector("h2:has-text('POST /api/colorize')")
    assert "denoising steps" in page.inner_text("#paths")


@pytest.mark.slow
def test_with_the_model_that_comes_with_the_toolkit(visit, tmp_path):
    page = visit()
    page.set_default_timeout(280_000)
    page.select_option("#model", "base")
    page.click("#sample")
    page.wait_for_selector("#strip .answer:not(.waits)")
    ready(page)
    assert colourful(shown(page)) > 5
    name = hint(page, 100, 40)  # in hundred-and-twentieths and ninetieths of its sides
    saved = save(page, tmp_path / "a.png")
    (told,) = read_provenance(saved).hints
    found, wanted = ab(read(saved)[int(told.y), int(told.x)]), ab(ImageColor.getrgb(name))
    wanted[0] = found[0]
    assert (found - color.into_gamut(wanted[:, None, None])[:, 0, 0]).norm() < 5
