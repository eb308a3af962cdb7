"""web.py, guard.py, jobs.py, studio.py: the API does what it says, and errors are JSON without a path."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from Project7 import color, model_folder, web
from Project7.checkpoints import save_checkpoint
from Project7.config import RunConfig
from Project7.guard import limited
from Project7.jobs import JobEnded, QueueFull, Worker
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.painting import paint
from Project7.provenance import read_provenance
from Project7.studio import Limits, Studio
from Project7.training_config import DataConfig

KINDS = {
    "mine": DiffusionConfig(features=(8, 16), time_dim=16, hints=True, timesteps=50),
    "plain": RegressionConfig(model_channels=8, channel_multipliers=(1, 2)),
}


def write_model(folder: Path, kind, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = RunConfig(model=kind, data=DataConfig(image_size=32))
    folder.mkdir(parents=True, exist_ok=True)
    weights = build_model(kind).state_dict()
    save_checkpoint(folder / "best_model.pth", {"model_state_dict": weights, "config": config.model_dump(mode="json")})
    model_folder.write_config(model_folder.ModelFolder(folder), config)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, kind in KINDS.items():
        write_model(folder / name, kind)
    (folder / "broken").mkdir()
    (folder / "broken" / "best_model.pth").write_bytes(b"no model")
    (folder / "broken" / "config.json").write_text((folder / "mine" / "config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def studio(models_dir):
    return Studio(models_dir, device="cpu", limits=Limits(upload=2 << 20, pixels=300_000))


@pytest.fixture(scope="module")
def client(studio):
    with TestClient(web.make_app(studio), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def gray(height: int = 60, width: int = 90) -> np.ndarray:
    ramp = np.linspace(40, 220, width).round().astype(np.uint8)
    return np.repeat(np.broadcast_to(ramp, (height, width))[..., None], 3, axis=2).copy()


def png(rgb: np.ndarray | None = None) -> bytes:
    content = io.BytesIO()
    Image.fromarray(gray() if rgb is None else rgb).save(content, "PNG")
    return content.getvalue()


def upload(client, path: str = "/api/colorize", content: bytes | None = None, headers=None, **fields):
    name = fields.pop("filename", "photo.png")
    files = {"image": (name, png() if content is None else content, "image/png")}
    return client.post(path, files=files, data={"model": "mine", "steps": 2} | fields, headers=headers)


def opened(client, content: bytes | None = None) -> str:
    response = client.post("/api/photos", files={"image": ("photo.png", content or png())})
    assert response.status_code == 201
    return response.json()["id"]


def said(text: str) -> list[tuple[str, dict]]:
    """The server-sent events of an answer."""
    pairs = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    return [(kind, json.loads(data)) for kind, data in pairs]


def is_error(response, status: int) -> str:
    """The message of an error, which must be JSON with a request id, and without a path."""
    assert response.status_code == status, response.text[:300]
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert not re.search(r"/(tmp|work|home|usr|root)/|\.pth|Traceback", response.text)
    return body["error"]


def lightness(rgb) -> np.ndarray:
    return color.rgb_to_lab(color.channels_first(np.array(rgb)[..., :3])[None])[0, 0].numpy()


# -- a photo in, its colours out -------------------------------------------------------------------------------------


def test_a_photo_comes_back_in_colour_at_its_size(client):
    response = upload(client, seed=3)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    picture = np.asarray(Image.open(io.BytesIO(response.content)))
    assert picture.shape == (60, 90, 3)
    assert np.abs(lightness(picture) - lightness(gray())).mean() < 0.5
    assert np.ptp(picture.astype(int), axis=-1).mean() > 3
    assert upload(client, seed=3).content == response.content
    assert upload(client, seed=4).content != response.content


def test_several_variants_come_as_json(client):
    images = upload(client, variants=2, seed=5).json()["images"]
    assert [image["seed"] for image in images] == [5, 6]
    assert base64.b64decode(images[1]["png"]) == upload(client, seed=6).content


def test_the_picture_is_seen_forming(client):
    found = said(upload(client, steps=4, headers={"Accept": "text/event-stream"}).text)
    assert [kind for kind, _ in found] == ["step"] * 4 + ["done"]
    forming = base64.b64decode(found[1][1]["image"].partition(",")[2])
    assert Image.open(io.BytesIO(forming)).width > 10
    done = base64.b64decode(found[-1][1]["images"][0]["png"])
    assert done == upload(client, steps=4).content


def test_a_hint_is_heard_and_kept(client):
    hints = json.dumps([{"x": 20, "y": 30, "color": "#2040c0"}])
    made = upload(client, hints=hints, working_size=60)
    ab = color.rgb_to_lab(color.channels_first(np.array(Image.open(io.BytesIO(made.content)))))[1:, 30, 20]
    told = read_provenance(io.BytesIO(made.content)).hints
    assert [hint.as_hint() for hint in told] == [(20, 30, "#2040c0")]
    wanted = color.rgb_to_lab(torch.tensor([0x20, 0x40, 0xC0], dtype=torch.uint8)[:, None, None])
    wanted[0] = float(lightness(gray())[30, 20])
    assert (ab - color.into_gamut(wanted)[1:, 0, 0]).norm() < 5


def test_models_and_health(client):
    models = {model["name"]: model for model in client.get("/api/models").json()["models"]}
    assert {"mine", "plain", "base"} <= set(models)
    assert next(iter(models)) == "base"
    assert models["mine"]["takes_hints"]
    assert models["plain"]["answers"] == 1
    assert client.get("/api/health").json()["status"] == "ok"
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/colorize", "/api/models", "/api/photos/{id}/answers"} <= set(paths)


def test_the_router_serves_in_an_app_of_ones_own(studio):
    app = FastAPI()
    app.state.studio = studio
    app.include_router(web.router, prefix="/project7")
    client = TestClient(app, raise_server_exceptions=False)
    assert upload(client, "/project7/api/colorize").content.startswith(b"\x89PNG")
    assert "<html" in client.get("/project7/").text
    assert client.get("/project7/static/style.css").status_code == 200
    is_error(upload(client, "/project7/api/colorize", steps=0), 422)


# -- photos that stay open -------------------------------------------------------------------------------------------


def fields_of(event: dict) -> torch.Tensor:
    data = np.frombuffer(base64.b64decode(event["data"]), "<i2").astype(np.float32) / 128
    return torch.from_numpy(data.reshape(event["channels"], event["height"], event["width"]))


def test_an_open_photo_is_answered_and_exported(client):
    id = opened(client)
    asked = {"model": "mine", "steps": 3, "hints": [{"x": 70, "y": 30, "color": "#c03020"}]}
    found = said(client.post(f"/api/photos/{id}/answers", json={**asked, "seeds": [1, 2]}).text)
    assert [kind for kind, _ in found] == ["step"] * 3 + ["answer"] + ["step"] * 3 + ["answer", "done"]
    answer = fields_of(found[3][1])[1:]
    assert "data" in found[0][1]
    assert "data" not in found[4][1]  # only the first answer is shown while it forms
    assert len(answer) == 6
    exported = client.post(f"/api/photos/{id}/export", json={**asked, "seed": 1, "saturation": 1.5, "warmth": 6})
    picture = np.asarray(Image.open(io.BytesIO(exported.content)))
    ab = 1.5 * answer[1:3] + 6 * torch.stack([answer[5] * 0, 1 - answer[5]]) + answer[3:5]
    L = color.lightness(color.channels_first(gray())[None])
    small = torch.nn.functional.interpolate(L, ab.shape[-2:], mode="bilinear", antialias=True)
    mine = paint(L, small, ab[None], torch.zeros(2), torch.ones(2))
    assert np.abs(mine.astype(int) - picture).max() <= 2  # what the page shows is what is written


def test_gray_suggestions_and_ambiguity(client):
    id = opened(client)
    shown = Image.open(io.BytesIO(client.get(f"/api/photos/{id}/gray").content))
    assert (shown.mode, shown.size) == ("L", (90, 60))
    assert np.array_equal(np.asarray(shown), gray()[..., 0])
    assert Image.open(io.BytesIO(client.get(f"/api/photos/{id}/gray?side=45").content)).size == (45, 30)
    colors = client.post(f"/api/photos/{id}/suggest", json={"model": "mine", "x": 20, "y": 30}).json()["colors"]
    assert colors
    assert all(re.fullmatch("#[0-9a-f]{6}", one["color"]) for one in colors)
    found = client.post(f"/api/photos/{id}/ambiguity", json={"model": "mine"}).json()
    assert len(base64.b64decode(found["data"])) == found["height"] * found["width"]
    assert 0 <= found["best"]["x"] < 90


def test_the_colours_of_another_photo_become_hints(client):
    truth = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    truth = np.array(Image.fromarray(truth).resize((180, 120), Image.Resampling.BICUBIC))
    id = opened(client, png(truth))
    response = client.post(
        f"/api/photos/{id}/reference", files={"image": ("a.png", png(truth))}, data={"model": "mine"}
    )
    hints = response.json()["hints"]
    assert hints
    assert all(0 <= hint["x"] < 180 and 0 <= hint["y"] < 120 for hint in hints)
    is_error(client.post(f"/api/photos/{id}/reference", files={"image": ("a.png", b"x")}), 422)


def test_a_mixed_picture_is_exported_and_goes_on(client):
    asked = {"model": "mine", "steps": 2, "working_size": 60}
    strokes = [{"seed": 2, "radius": 20, "points": [[10, 10], [10, 50]]}]
    id = opened(client)
    one, two, mixed = (
        client.post(f"/api/photos/{id}/export", json={**asked, **more}).content
        for more in ({"seed": 1}, {"seed": 2}, {"seed": 1, "strokes": strokes})
    )
    first, second, both = (np.asarray(Image.open(io.BytesIO(png))) for png in (one, two, mixed))
    assert np.array_equal(both[:, 40:], first[:, 40:])
    assert np.array_equal(both[10:50, 8:12], second[10:50, 8:12])
    made = client.post("/api/photos", files={"image": ("x.png", mixed)}).json()["made"]
    assert made["strokes"] == [{"seed": 2, "radius": 20.0, "points": [[10.0, 10.0], [10.0, 50.0]]}]
    wrong = [{"seed": 2, "radius": 0, "points": [[1, 1]]}]
    assert "radius" in is_error(client.post(f"/api/photos/{id}/export", json={**asked, "strokes": wrong}), 422)


def test_levels_are_those_of_the_command_line(client, studio):
    dull = (gray() // 8 + 100).astype(np.uint8)
    response = client.post("/api/photos", files={"image": ("photo.png", png(dull))}).json()
    assert response["faded"]
    asked = {"model": "mine", "steps": 2, "levels": "auto"}
    picture = np.asarray(
        Image.open(io.BytesIO(client.post(f"/api/photos/{response['id']}/export", json=asked).content))
    )
    there = studio.colorizer("mine").colorize(dull, steps=2, levels="auto")
    assert np.array_equal(picture, np.asarray(there))
    shown = client.get(f"/api/photos/{response['id']}/gray?levels=auto").content
    assert np.abs(lightness(picture) - lightness(Image.open(io.BytesIO(shown)).convert("RGB"))).mean() < 0.5
    is_error(client.get(f"/api/photos/{response['id']}/gray?levels=no"), 422)


def test_hints_are_carried_over_to_another_open_photo(client):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(picture).resize((180, 120), Image.Resampling.BICUBIC))
    first, second = opened(client, png(picture)), opened(client, png(picture[:, ::-1].copy()))
    asked = {"model": "mine", "source": first, "hints": [{"x": 40, "y": 60, "color": "#2040c0"}]}
    (hint,) = client.post(f"/api/photos/{second}/carried", json=asked).json()["hints"]
    assert hint["color"] == "#2040c0"
    assert np.hypot(hint["x"] - 139, hint["y"] - 60) < 20
    is_error(client.post(f"/api/photos/{second}/carried", json=asked | {"source": "gone"}), 404)
    outside = [{"x": 180, "y": 60, "color": "#2040c0"}]
    assert "outside the photo" in is_error(
        client.post(f"/api/photos/{second}/carried", json=asked | {"hints": outside}), 422
    )


@pytest.mark.parametrize(("kind", "size", "mode"), [("side", (184, 60), "RGB"), ("layer", (90, 60), "RGBA")])
def test_other_exports(client, kind, size, mode):
    asked = {"model": "mine", "steps": 2, "kind": kind}
    image = Image.open(io.BytesIO(client.post(f"/api/photos/{opened(client)}/export", json=asked).content))
    assert (image.size, image.mode) == (size, mode)


def test_a_picture_of_ours_goes_on_from_where_it_was(client):
    made = upload(client, seed=7, steps=3, saturation=1.2).content
    response = client.post("/api/photos", files={"image": ("x.png", made)}).json()
    assert (response["made"]["seed"], response["made"]["saturation"], response["made"]["model"]) == (7, 1.2, "mine")
    again = {"model": "mine", "seed": 7, "steps": 3, "saturation": 1.2}
    exported = client.post(f"/api/photos/{response['id']}/export", json=again).content
    first, second = (np.asarray(Image.open(io.BytesIO(x))).astype(int) for x in (made, exported))
    assert np.abs(first - second).max() <= 3


def test_closed_and_forgotten_photos_are_404(client, studio):
    ids = [opened(client) for _ in range(studio.limits.photos + 1)]
    assert "open it again" in is_error(client.get(f"/api/photos/{ids[0]}/gray"), 404)
    assert client.delete(f"/api/photos/{ids[-1]}").status_code == 204
    is_error(client.get(f"/api/photos/{ids[-1]}/gray"), 404)


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"steps": 10**9},
        {"steps": 51},  # more than this model was trained with
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "NaN"},
        {"saturation": "nan"},
        {"sampler": "none"},
        {"variants": 17},
        {"working_size": 10**6},
        {"temperature": 0.5},  # another method's
        {"no_such": 1},
        {"hints": "[{"},
        {"hints": "{}"},
        {"hints": "[1]"},
        {"hints": "[" * 100_000},
        {"hints": json.dumps([{"x": 90, "y": 0, "color": "red"}])},
        {"hints": json.dumps([{"x": 0, "y": -1, "color": "red"}])},
        {"hints": '[{"x": NaN, "y": 0, "color": "red"}]'},
        {"hints": json.dumps([{"x": 0, "y": 0, "color": "no colour"}])},
        {"hints": json.dumps([{"x": 0, "y": 0, "color": "red", "z": 1}])},
        {"model": "plain", "variants": 2, "steps": ""},
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_422(client, fields):
    is_error(upload(client, **fields), 422)


@pytest.mark.parametrize("content", [b"", b"x", b"plain text", b"%PDF-1.4", b"<svg></svg>", png()[:120]])
def test_what_is_no_photo_is_422(client, content):
    assert "the picture" in is_error(upload(client, content=content), 422)
    is_error(client.post("/api/photos", files={"image": ("a.png", content)}), 422)


def test_too_many_pixels_are_refused_before_decoding(client):
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 50_000
    assert "9000 x 9000" in is_error(upload(client, content=bomb.getvalue()), 422)


def test_forms_that_are_none(client):
    is_error(client.post("/api/colorize", data={f"f{n}": "1" for n in range(2000)}), 400)
    is_error(client.post("/api/colorize", files={f"f{n}": b"" for n in range(2000)}), 400)
    is_error(client.post("/api/colorize", data={"model": "mine"}), 422)  # no photo
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\xff"):
        headers = {"Content-Type": kind.encode("latin-1")}
        response = client.post("/api/colorize", content=b"--x\r\n\r\n1", headers=headers)
        assert 400 <= response.status_code < 500
        is_error(response, response.status_code)
    is_error(client.get("/api/colorize"), 405)
    is_error(client.get("/no/such/page"), 404)
    is_error(client.post("/api/photos/x/answers", content=b"{", headers={"Content-Type": "application/json"}), 422)


def test_models_that_are_missing_damaged_or_replaced(client, models_dir):
    for name in ("gone", "../mine", "a/b", "C:x", ".hidden"):
        is_error(upload(client, model=name), 404)
    response = upload(client, model="broken")
    assert "damaged" in is_error(response, 503)
    assert int(response.headers["retry-after"]) > 0
    first = upload(client).content
    write_model(models_dir / "mine", KINDS["mine"], seed=1)
    assert upload(client).content != first


@pytest.mark.parametrize("name", ["../../x.png", "a\r\nSet-Cookie: x", "<img onerror=alert(1)>.png", "\u202egnp.exe"])
def test_a_file_name_goes_nowhere(client, name):
    response = upload(client, filename=name)
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert response.headers["content-disposition"] == 'inline; filename="colour.png"'
    assert name.encode(errors="replace") not in response.content


@pytest.mark.parametrize("name", ["../web.py", "%2e%2e/web.py", "..%2fweb.py", "/etc/passwd", "x\0", ""])
def test_only_files_of_the_page_are_served(client, name):
    response = client.get("/static/" + name.replace("\0", "%00"))
    assert response.status_code == 404
    assert "import" not in response.text


def test_a_fault_of_the_program_tells_its_log_and_nobody_else(client, monkeypatch, caplog):
    monkeypatch.setattr(web, "written", lambda *_: Path("/tmp/no/such/secret").read_bytes())
    message = is_error(upload(client), 500)
    assert "log" in message
    assert "secret" in caplog.text


def test_a_body_is_counted_whatever_it_says(client, studio):
    big = b"x" * (studio.limits.upload + 1)
    assert "MiB" in is_error(upload(client, content=big), 413)

    for length in ("-1", "x", "1" * 30):
        response = client.post("/api/colorize", content=b"", headers={"Content-Length": length})
        is_error(response, 413 if length.isdigit() else 400)


def test_a_flood_without_a_length_is_refused_before_it_is_spooled(studio):
    """The request is sent by hand, because a test client would collect the whole body first."""
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    sent, answer = 0, []

    async def flood():
        nonlocal sent
        sent += 1
        assert sent < 100
        return {"type": "http.request", "body": start if sent == 1 else b"x" * 100_000, "more_body": True}

    async def keep(message):
        answer.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/api/colorize", "headers": headers, "query_string": b""}
    scope |= {"scheme": "http", "server": ("127.0.0.1", 80), "root_path": "", "http_version": "1.1"}
    asyncio.run(web.make_app(studio)(scope, flood, keep))
    assert answer[0]["status"] == 413
    assert "MiB" in json.loads(answer[1]["body"])["error"]
    assert sent < 25  # 2 MiB


def test_a_body_that_never_ends_is_given_up():
    async def silent():
        await asyncio.sleep(60)

    async def run():
        with pytest.raises(web.HTTPException) as error:
            await limited(silent, Limits(upload_seconds=0.01))()
        assert error.value.status_code == 408

    asyncio.run(run())


def test_another_host_and_another_sites_page_are_refused(client):
    assert "another name" in is_error(client.get("/api/health", headers={"Host": "evil.example"}), 403)
    for name in ("127.0.0.1:7860", "localhost", "[::1]:7860", "192.168.0.7"):
        assert client.get("/api/health", headers={"Host": name}).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert "another site" in is_error(upload(client, headers=headers), 403)
    assert upload(client, headers={"Origin": "http://127.0.0.1"}).status_code == 200
    assert client.get("/api/health", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


# -- the queue -------------------------------------------------------------------------------------------------------


def test_a_server_warms_up_in_no_queue(models_dir):
    studio = Studio(models_dir, device="cpu")
    with TestClient(web.make_app(studio), base_url="http://127.0.0.1"):
        assert studio.heavy.count == studio.light.count == 0
    assert list(studio._models) == [studio.default_model()]


def test_a_full_queue_says_so_and_empties(models_dir, monkeypatch):
    studio = Studio(models_dir, device="cpu", limits=Limits(waiting=2))
    go = threading.Event()
    monkeypatch.setattr(studio, "read", lambda content, own=studio.read: go.wait(30) and own(content))
    with TestClient(web.make_app(studio), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(upload, client) for _ in range(3)]
        while studio.heavy.count < 3:
            time.sleep(0.01)
        refused = upload(client)
        go.set()
        assert "waiting" in is_error(refused, 503)
        assert int(refused.headers["retry-after"]) > 0
        assert [future.result().status_code for future in waiting] == [200] * 3
        while studio.heavy.count:  # the count falls a moment after the answer
            time.sleep(0.01)


def run_job(seconds: float, leave_after: int | None = None) -> tuple[int, BaseException | None]:
    """Runs a job of endless steps: returns how many it made, and how it ended."""
    worker, steps, ended = Worker(waiting=1, seconds=seconds), 0, None

    def work(job):
        nonlocal steps
        while True:
            job.say("step", steps)
            steps += 1
            time.sleep(0.005)

    async def run():
        nonlocal ended
        job = worker.submit(work)
        try:
            async for _, value in job.events():
                if value == leave_after:
                    job.cancel()
        except JobEnded as error:
            ended = error

    asyncio.run(run())
    worker.close()
    return steps, ended


def test_a_job_ends_within_a_step_when_nobody_waits_or_it_takes_too_long():
    steps, ended = run_job(60, leave_after=3)
    assert 3 < steps < 30
    assert "cancelled" in str(ended)
    assert "0.05 seconds" in str(run_job(0.05)[1])


def test_a_cancelled_job_that_waits_never_begins_and_frees_its_place():
    async def run():
        worker, go, begun = Worker(waiting=1, seconds=60), threading.Event(), []
        worker.submit(lambda job: go.wait(30))
        second = worker.submit(lambda job: begun.append(1))
        with pytest.raises(QueueFull):
            worker.submit(lambda job: None)
        second.cancel()
        third = worker.submit(lambda job: 3)
        go.set()
        assert await third.next(30) == ("done", 3)
        assert begun == []
        worker.close()

    asyncio.run(run())


# -- a client that goes away -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def live(studio: Studio) -> Iterator[int]:
    """A real server in a thread, on this port, because a test client cannot hang up."""
    server = uvicorn.Server(uvicorn.Config(web.make_app(studio), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(60)


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_client_that_goes_away_frees_the_worker_within_a_step(models_dir, monkeypatch, caplog):
    """It may be waiting for a picture, for events or for an export, or still be sending."""
    studio, steps = Studio(models_dir, device="cpu"), []

    def watch(*arguments, own=web.watch):
        step = own(*arguments)

        def slow(x_0):
            steps.append(1)
            time.sleep(0.03)
            step(x_0)

        return slow

    monkeypatch.setattr(web, "watch", watch)
    with live(studio) as port:
        address = f"http://127.0.0.1:{port}/"
        files = httpx.post(address + "api/photos", files={"image": png()}, timeout=120).json()
        asked = {"model": "mine", "steps": 50}
        whole = [
            httpx.Request("POST", address + "api/colorize", data=asked, files={"image": png()}),
            httpx.Request(
                "POST",
                address + "api/colorize",
                data=asked,
                files={"image": png()},
                headers={"Accept": "text/event-stream"},
            ),
            httpx.Request("POST", address + f"api/photos/{files['id']}/answers", json=asked),
            httpx.Request("POST", address + f"api/photos/{files['id']}/export", json=asked),
        ]
        for asking in whole:
            steps.clear()
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(raw(asking))
                until(lambda: len(steps) >= 3)
            until(lambda: studio.heavy.count == 0)
            assert len(steps) < 12, asking.url  # the server notices it a moment later
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(raw(whole[0])[:-40])
        assert request(address) == 200
    assert caplog.text == ""


def raw(asking: httpx.Request) -> bytes:
    lines = [f"POST {asking.url.raw_path.decode()} HTTP/1.1", *(f"{k}: {v}" for k, v in asking.headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + asking.read()


# -- the whole program -----------------------------------------------------------------------------------------------


def start_server(models_dir: Path, tmp_path: Path) -> tuple[subprocess.Popen, str]:
    code = (
        "import functools, sys; from Project7 import cli, program, studio; "
        "studio.Limits = functools.partial(studio.Limits, waiting=3); "  # a queue that 8 clients fill
        "sys.exit(program.run(lambda: cli.command(sys.argv[1:])))"
    )
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--models-dir", str(models_dir)]
    environment = os.environ | {"PYTHONPATH": str(Path(web.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in server.stdout:
        if match := re.search(rb"http://[\d.]+:\d+/", line):
            return server, match.group().decode()
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_the_server_is_bound_to_this_machine_keeps_its_shape_and_drains(models_dir, tmp_path):
    """There are 200 requests, 8 at a time, to a queue for 3; SIGTERM arrives while a job runs."""
    server, address = start_server(models_dir, tmp_path)
    with server:
        try:
            assert address.startswith("http://127.0.0.1:")
            with ThreadPoolExecutor(8) as pool:
                shape = []
                for _ in range(3):
                    codes = list(pool.map(lambda _: request(address), range(100 if shape else 20)))
                    assert set(codes) == {200, 503}  # with Retry-After
                    assert codes.count(200) > len(codes) // 10
                    shape.append(measure(server.pid))
                files, threads, memory = (np.subtract(shape[2], shape[1])).tolist()
                assert files <= 2
                assert threads <= 2
                assert memory < 30  # MB
                last = pool.submit(request, address, steps=50, working_size=64)
                while json.loads(urllib.request.urlopen(address + "api/health").read())["jobs"] == 0:
                    time.sleep(0.02)
                server.send_signal(signal.SIGTERM)
                assert last.result() == 200
            assert server.wait(60) == 0
            assert b"Traceback" not in server.stdout.read()
        finally:
            server.kill()


def request(address: str, **fields) -> int:
    parts = {"model": "mine", "steps": 2, **fields}
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in parts.items()
    )
    body += b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png() + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address + "api/colorize", body, headers), timeout=120
        ) as got:
            return got.status if got.read().startswith(b"\x89PNG") else 0
    except urllib.error.HTTPError as error:
        time.sleep(0.3)  # as Retry-After asks, only sooner
        return error.code if error.headers["Retry-After"] else 0


def measure(pid: int) -> tuple[int, int, int]:
    """The open files, threads and resident MB of a process."""
    gc.collect()
    status = Path(f"/proc/{pid}/status").read_text()
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return files, int(re.search(r"Threads:\s+(\d+)", status)[1]), int(re.search(r"VmRSS:\s+(\d+)", status)[1]) >> 10


def test_a_port_that_is_taken_is_said(models_dir, tmp_path, capsys):
    from Project7 import cli

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(web.UsageError, match=f"--port {port} is not available"):
            cli.command(["serve", "--port", str(port), "--models-dir", str(models_dir)])
