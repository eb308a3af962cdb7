"""Colouring over HTTP: a page at /, its API, and a router for another backend.

>>> app.include_router(Project7.web.router, prefix="/project7")     # the page is at /project7/ then
"""

import base64
import contextlib
import io
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import Field
from starlette.exceptions import HTTPException

from Project7 import __version__, color
from Project7.answer_config import LevelsName
from Project7.brush import Strokes
from Project7.errors import UsageError
from Project7.guard import GuardedRoute, OwnPageOnly, error_response
from Project7.hints import Hint
from Project7.jobs import Job, JobEnded
from Project7.model_config import MethodConfig
from Project7.model_folder import ModelSummary
from Project7.opened import Answer, OpenPhoto
from Project7.painting import bands
from Project7.photo import as_png
from Project7.provenance import MOST_HINTS, GivenHint, read_hints
from Project7.reference import Hinted, hints_from
from Project7.scan import Lightness
from Project7.sheet import side_by_side
from Project7.studio import Asked, NotHere, Shelved, Studio

_STATIC = Path(__file__).resolve().parent / "static"
_SCALE = 128  # steps per Lab unit in the fields that the page receives
_LARGEST = 4096  # pixels of the long side that the page shows; only files are larger
_STRONG = 30.0  # Lab units of chroma from which the exported colour layer is opaque
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"
_SAMPLE = "coffee"

router = APIRouter(route_class=GuardedRoute)


async def find_studio(request: Request) -> Studio:
    """The studio of the app, `app.state.studio`; one with the default settings if it has none."""
    if not hasattr(request.app.state, "studio"):
        request.app.state.studio = Studio()
    return request.app.state.studio


InStudio = Annotated[Studio, Depends(find_studio)]


# -- what is asked ---------------------------------------------------------------------------------------------------


Side = Annotated[int, Query(ge=16, le=_LARGEST)]  # pixels


class Uploaded(Asked):
    """The fields of POST /api/colorize."""

    image: UploadFile
    variants: int = Field(1, ge=1, le=16)
    hints: str = Field("[]", max_length=1 << 20)


class OfPhoto(Asked):
    """The fields of a request about an open photo."""

    hints: tuple[GivenHint, ...] = Field((), max_length=MOST_HINTS)

    def all_hints(self) -> list[tuple[float, float, str]]:
        return [hint.as_hint() for hint in self.hints]


class Answers(OfPhoto):
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0, 1, 2, 3), min_length=1, max_length=16)


class Place(OfPhoto):
    x: float = Field(ge=0, lt=1e6)
    y: float = Field(ge=0, lt=1e6)


class Carried(OfPhoto):
    source: str = Field(max_length=64)  # the open photo that the hints are of


class Export(OfPhoto):
    kind: Literal["full", "side", "layer"] = "full"
    strokes: Strokes = ()


# -- models ----------------------------------------------------------------------------------------------------------


@router.get("/api/health")
async def health(studio: InStudio) -> dict[str, Any]:
    """Whether the server is alive, and how many jobs it has."""
    return {"status": "ok", "version": __version__, "jobs": studio.heavy.count, "waiting": studio.limits.waiting}


@router.get("/api/models")
async def models(studio: InStudio) -> dict[str, Any]:
    """The available models, the default first, and what each can do."""
    limits = {"pixels": studio.limits.pixels, "bytes": studio.limits.upload}
    return {"models": [about(model) for model in studio.models()], "limits": limits}


def about(model: ModelSummary) -> dict[str, Any]:
    config: Any = model.config  # the studio lists only models whose configuration can be read
    kind = config.model
    return {
        "name": model.name,
        "method": kind.method,
        "about": f"{kind.network_in_words()}, {kind.method_in_words()}",
        "working_size": config.data.image_size,
        "answers": 1 if kind.method == "regression" else None,  # None: as many as there are seeds
        "takes_hints": getattr(kind, "hints", False),  # others are corrected along the edges of L
        "knows": knows(kind),
    }


def knows(kind: MethodConfig) -> bool:
    """Whether such a model predicts a distribution of colours, so that suggestions need no denoising."""
    return kind.method == "classification" or getattr(kind, "head", "none") == "classes"


# -- a photo in, its colours out -------------------------------------------------------------------------------------


@router.post("/api/colorize", response_class=Response)
async def colorize(request: Request, asked: Annotated[Uploaded, Form()], studio: InStudio) -> Response:
    """A PNG at full size, or JSON `{"images": [{"seed", "png"}]}` (base64) of several variants.

    With `Accept: text/event-stream`: events `step` with the picture forming, and `done` with that JSON.
    """
    hints, content = read_hints(asked.hints), await asked.image.read()
    first: int = asked.seed  # type: ignore[attr-defined] # its fields are made from ColorizeConfig
    streamed = "text/event-stream" in request.headers.get("accept", "")

    def work(job: Job) -> list[dict[str, Any]]:
        opened = studio.opened(studio.read(content), asked, hints)
        options = opened.colorizer.model.OPTIONS
        if asked.variants > 1 and not options:
            raise UsageError(f"variants {asked.variants}: this model has only one answer; leave variants out.")
        if asked.variants > 1 and "variety" in options:
            opened.options.setdefault("variety", 1.0)
        images: list[dict[str, Any]] = []
        for seed in range(first, first + asked.variants):
            opened.seed = seed
            opened.answers([seed], watch=watch(job, opened, forming if streamed else None))
            images.append({"seed": seed, "png": written(opened, "full")})
        return images

    job = studio.heavy.submit(work)
    if streamed:
        return StreamingResponse(events(job, in_base64), media_type="text/event-stream")
    images = await finished(job, request)
    if asked.variants == 1:
        return picture(images[0]["png"])
    return JSONResponse(in_base64(images))


def in_base64(images: list[dict[str, Any]]) -> dict[str, Any]:
    return {"images": [{**image, "png": base64.b64encode(image["png"]).decode()} for image in images]}


def picture(png: bytes) -> Response:
    return Response(png, media_type="image/png", headers={"Content-Disposition": 'inline; filename="colour.png"'})


def watch(job: Job, opened: OpenPhoto, show: Callable[[OpenPhoto, Answer], dict[str, Any]] | None) -> Callable:
    """A callback for each denoising step: it reports the progress, and ends the job if nobody waits for it."""
    done, steps = 0, opened.options.get("steps", 1)

    def step(x_0) -> None:
        nonlocal done
        job.check()
        done += 1
        forms = show(opened, opened.estimate(x_0)) if show else {}
        job.say("step", {"seed": opened.seed, "step": done, "steps": steps, **forms})

    return step


def forming(opened: OpenPhoto, answer: Answer) -> dict[str, Any]:
    """The picture at the size at which the network works, as a data URL."""
    model = opened.colorizer.model
    lab = color.join(opened.small, opened.chroma(answer), model.ab_mean.cpu(), model.ab_std.cpu())
    png = as_png(color.channels_last(color.show(lab))[0])
    return {"image": f"data:image/png;base64,{base64.b64encode(png).decode()}"}


async def finished(job: Job, request: Request) -> Any:
    """The result of a job, which is cancelled if the client disconnects."""
    try:
        while True:
            event = await job.next(0.5)
            if event and event[0] == "done":
                return event[1]
            if await request.is_disconnected():
                raise JobEnded("the client has gone.")
    finally:
        job.cancel()


async def events(job: Job, result: Callable[[Any], Any]) -> AsyncIterator[str]:
    """A job as server-sent events. result: makes the data of "done" from the job's result."""
    try:
        async with contextlib.aclosing(job.events()) as said:
            async for kind, value in said:
                yield event(kind, result(value) if kind == "done" else value)
    except Exception as error:
        yield event("failed", json.loads(bytes(error_response(error).body)))


def event(kind: str, value: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n"


# -- photos that stay open -------------------------------------------------------------------------------------------


@router.post("/api/photos", status_code=201)
async def open_photo(request: Request, studio: InStudio, image: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """Opens a photo. faded: whether levels would help it. made: how it was made, if it is a picture of this toolkit."""
    content = await image.read()
    shelved = await finished(studio.light.submit(lambda job: studio.read(content)), request)
    studio.keep(shelved)
    return opened_photo(shelved)


@router.post("/api/photos/sample", status_code=201)
async def open_sample(request: Request, studio: InStudio) -> dict[str, Any]:
    """Opens the photo that comes with the toolkit."""
    from Project7.photo_source import sample_photos

    content = sample_photos()[_SAMPLE].read_bytes()
    shelved = await finished(studio.light.submit(lambda job: studio.read(content)), request)
    studio.keep(shelved)
    return opened_photo(shelved)


def opened_photo(shelved: Shelved) -> dict[str, Any]:
    height, width = shelved.photo.rgb.shape[:2]
    made = shelved.made and shelved.made.model_dump(mode="json")
    about = {"width": width, "height": height, "notes": shelved.photo.notes, "faded": shelved.faded}
    return {"id": shelved.id, **about, "made": made}


@router.delete("/api/photos/{id}", status_code=204)
async def close_photo(id: str, studio: InStudio) -> None:
    studio.drop(id)


@router.get("/api/photos/{id}/gray", response_class=Response)
async def gray(
    id: str, request: Request, studio: InStudio, levels: LevelsName = "off", side: Side = _LARGEST
) -> Response:
    """The lightness of the picture as a gray PNG, what the page lays colour onto; its long side is `side` at most."""
    shelved = studio.find(id)
    png = await finished(studio.light.submit(lambda job: gray_png(shelved, levels, side)), request)
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600, immutable"})


def gray_png(shelved: Shelved, levels: str, side: int) -> bytes:
    image, content = Image.fromarray(gray_levels(shelved, levels)), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def gray_levels(shelved: Shelved, levels: str) -> np.ndarray:
    """(H, W) uint8"""
    rgb = shelved.photo.rgb
    if levels != "auto" and (rgb == rgb[..., :1]).all():
        return np.ascontiguousarray(rgb[..., 0])  # the photo is gray: there is nothing to compute
    L = Lightness(shelved.photo, levels=levels, lightness=shelved.L).L
    found = np.empty(L.shape[-2:], np.uint8)
    for rows in bands(*L.shape[-2:]):
        found[rows] = color.to_uint8(color.gray_level(L[:, :, rows]))[0, 0].numpy()
    return found


@router.post("/api/photos/{id}/answers", response_class=StreamingResponse)
async def answers(id: str, asked: Answers, studio: InStudio) -> StreamingResponse:
    """Server-sent events: `first` (available at once), `step` (the first answer forming), `answer` for each seed.

    Each carries the result of `OpenPhoto.fields`: int16, little endian, 128 steps per Lab unit, base64. Where the first
    is an earlier answer with the hints laid on, steps carry nothing: it is nearer to the new one than what is forming.
    """
    shelved = studio.find(id)

    def work(job: Job) -> list[int]:
        opened = studio.opened(shelved, asked, asked.all_hints())
        latest = opened.latest(asked.seeds[0])
        if (first := latest or opened.first()) is not None:
            job.say("first", fields(opened, first))
        for number, seed in enumerate(asked.seeds if opened.colorizer.model.OPTIONS else asked.seeds[:1]):
            opened.seed = seed
            (answer,) = opened.answers([seed], watch=watch(job, opened, None if number or latest else fields))
            job.say("answer", {"seed": seed, **fields(opened, answer)})
        return list(asked.seeds)

    job = studio.heavy.submit(work)
    return StreamingResponse(events(job, lambda seeds: {"seeds": seeds}), media_type="text/event-stream")


def fields(opened: OpenPhoto, answer: Answer) -> dict[str, Any]:
    found = opened.fields(answer)
    if not opened.hints:
        found = found[:4]  # the others are zero
    steps = (found * _SCALE).round().clamp(-32768, 32767).short().numpy().astype("<i2")
    channels, height, width = steps.shape
    data = base64.b64encode(steps.tobytes()).decode()
    flat = (height, width) != tuple(opened.small.shape[-2:])  # of the photo's own size: nothing is enlarged
    return {"height": height, "width": width, "channels": channels, "flat": flat, "data": data}


@router.post("/api/photos/{id}/suggest")
async def suggest(id: str, asked: Place, request: Request, studio: InStudio) -> dict[str, Any]:
    """Likely colours at (x, y), at the lightness of that pixel, the likeliest first."""

    def work(opened: OpenPhoto) -> list[tuple[str, float]]:
        return opened.suggest(asked.x, asked.y)

    found = await of_photo(id, asked, request, studio, work)
    return {"colors": [{"color": name, "share": round(share, 4)} for name, share in found]}


@router.post("/api/photos/{id}/ambiguity")
async def ambiguity(id: str, asked: OfPhoto, request: Request, studio: InStudio) -> dict[str, Any]:
    """Where the model is unsure: uint8 in Lab units, base64; and the pixel whose hint would remove most of it."""

    def work(opened: OpenPhoto) -> tuple[np.ndarray, tuple[int, int]]:
        return opened.doubt().round().clamp(0, 255).byte().numpy(), opened.best_click()

    doubt, (x, y) = await of_photo(id, asked, request, studio, work)
    data = base64.b64encode(doubt.tobytes()).decode()
    return {"height": doubt.shape[0], "width": doubt.shape[1], "data": data, "best": {"x": x, "y": y}}


async def of_photo(id: str, asked: Any, request: Request, studio: Studio, work: Callable[[OpenPhoto], Any]) -> Any:
    """Runs work on an open photo: at once if the model predicts a distribution, in the queue if it has to denoise."""
    shelved, name = studio.find(id), asked.model or studio.default_model()
    quick = any(model.name == name and knows(model.config.model) for model in studio.models() if model.config)
    worker = studio.light if quick else studio.heavy
    job = worker.submit(lambda job: work(studio.opened(shelved, asked, asked.all_hints())))
    return await finished(job, request)


@router.post("/api/photos/{id}/reference")
async def reference(
    id: str,
    request: Request,
    studio: InStudio,
    image: Annotated[UploadFile, File()],
    model: Annotated[str, Form()] = "",
) -> dict[str, Any]:
    """The colours of another photo as hints, at the places that are alike in both."""
    shelved, content = studio.find(id), await image.read()
    asked = OfPhoto(model=model or None)

    def work(job: Job) -> list[tuple[float, float, str]]:
        return hints_from(studio.opened(shelved, asked, ()), studio.read(content).photo)

    found = await finished(studio.heavy.submit(work), request)
    return as_json(found)


@router.post("/api/photos/{id}/carried")
async def carried(id: str, asked: Carried, request: Request, studio: InStudio) -> dict[str, Any]:
    """The hints of another open photo, each at the place where this photo is most like the hinted one."""
    shelved, hinted = studio.find(id), Hinted(studio.find(asked.source).photo, asked.all_hints())

    def work(job: Job) -> list[tuple[float, float, str]]:
        return hinted.hints_for(studio.opened(shelved, asked, ()))

    found = await finished(studio.heavy.submit(work), request)
    return as_json(found)


def as_json(hints: Sequence[Hint]) -> dict[str, Any]:
    return {"hints": [{"x": x, "y": y, "color": name} for x, y, name in hints]}


@router.post("/api/photos/{id}/export", response_class=Response)
async def export(id: str, asked: Export, request: Request, studio: InStudio) -> Response:
    """A PNG at full size: the picture, gray beside colour, or colour as a layer for an editor's blend mode "colour"."""
    shelved = studio.find(id)
    seed: int = asked.seed  # type: ignore[attr-defined] # its fields are made from ColorizeConfig

    def work(job: Job) -> bytes:
        opened = studio.opened(shelved, asked, asked.all_hints())
        opened.strokes = asked.strokes
        for one in dict.fromkeys([seed, *(stroke.seed for stroke in asked.strokes)]):
            opened.answers([one], watch=watch(job, opened, None))
        return written(opened, asked.kind)

    return picture(await finished(studio.heavy.submit(work), request))


def written(opened: OpenPhoto, kind: str) -> bytes:
    """The bytes of a PNG that says how it was made."""
    if kind == "layer":
        opened.mark = False  # the layer is put over another picture
    rgb, alpha, text = opened.picture(), opened.photo.alpha, opened.provenance().as_text()
    if kind == "side":
        gray_rgb = color.channels_last(color.gray(color.channels_first(opened.photo.rgb)[None]))[0]
        return as_png(side_by_side([gray_rgb, rgb]))
    if kind == "layer":
        strength = np.empty(rgb.shape[:2], np.uint8)
        for rows in bands(*rgb.shape[:2]):
            chroma = color.rgb_to_lab(color.channels_first(rgb[rows]))[1:].norm(dim=0)
            strength[rows] = (chroma / _STRONG).clamp(0, 1).mul(255).byte().numpy()
        return as_png(rgb, alpha=strength if alpha is None else np.minimum(strength, alpha))
    return as_png(rgb, alpha=alpha, exif=opened.photo.exif, text=text)


# -- the page --------------------------------------------------------------------------------------------------------


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return static_file("index.html")


@router.get("/static/{name:path}", include_in_schema=False)
async def static(name: str) -> FileResponse:
    return static_file(name)


def static_file(name: str) -> FileResponse:
    file = (_STATIC / name.replace("\0", "")).resolve()
    if not file.is_relative_to(_STATIC) or not file.is_file():
        raise NotHere("there is no such file.")
    return FileResponse(file, headers={"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY})


# -- the server ------------------------------------------------------------------------------------------------------


def make_app(studio: Studio, *, names: tuple[str, ...] = ()) -> FastAPI:
    """The whole server: the router and its documentation at /docs; requests from other sites' pages are refused. names:
    host names that are accepted besides localhost and addresses."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1) as beginning:  # in no queue: the first photo can be read meanwhile
            beginning.submit(studio.warm_up)
            yield
            studio.close()

    app = FastAPI(title="Project7", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.studio = studio
    app.include_router(router)
    app.add_api_route("/docs", lambda: static_file("docs.html"), include_in_schema=False)
    app.add_middleware(OwnPageOnly, names=names)
    for kind in (HTTPException, Exception):
        app.add_exception_handler(kind, lambda request, error: error_response(error))
    return app


def serve(studio: Studio, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, then waits for the running job to end. ready: is called with the address.

    Raises UsageError if the port is not available.
    """
    import uvicorn

    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port} is not available ({error.strerror}); choose another --port."
        ) from None
    settings: dict[str, Any] = {"log_level": "warning", "server_header": False, "timeout_graceful_shutdown": 60}
    server = uvicorn.Server(uvicorn.Config(make_app(studio, names=(host,)), **settings))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal once more after it has ended
        signal.signal(number, lambda *_: None)
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    with listening:
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])
