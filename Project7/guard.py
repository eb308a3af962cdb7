"""The requests that a server accepts: bounded in size and time, from its own page, addressed to its own name.

Its errors are JSON with a request id, and name no path.
"""

import asyncio
import ipaddress
import logging
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from Project7.errors import ProjectError, UsageError, sentence
from Project7.jobs import JobEnded, QueueFull
from Project7.photo import PhotoError
from Project7.studio import Limits, NotHere, Unusable

_RETRY_SECONDS = 5
_STATUS = (  # the first that fits
    (NotHere, 404),
    (Unusable, 503),
    (QueueFull, 503),
    (JobEnded, 503),
    (PhotoError, 422),
    (UsageError, 422),
    (ProjectError, 500),
)
_log = logging.getLogger("Project7.web")


class Refused(HTTPException):
    """A request that is refused before it is read to its end."""


def limited(receive: Callable, limits: Limits) -> Callable:
    """ASGI's `receive` with the limits on size and time, before anything is written to disk and whatever
    Content-Length says."""
    loop = asyncio.get_running_loop()
    deadline, count, whole = loop.time() + limits.upload_seconds, 0, False

    async def counted() -> dict[str, Any]:
        nonlocal count, whole
        if whole:
            return await receive()  # from here on it only says that the client has gone
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {limits.upload_seconds:g} seconds.") from None
        count += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if count > limits.upload:
            raise Refused(413, too_long(limits))
        return message

    return counted


def too_long(limits: Limits) -> str:
    return f"the request is larger than {limits.upload >> 20} MiB; make the photo smaller first."


def check_length(request: Request, limits: Limits) -> None:
    """Raises Refused if the Content-Length header, if there is one, is not a number or is too large."""
    length = request.headers.get("content-length")
    if length is None:
        return
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "the Content-Length is not a number.")
    if len(length) > 15 or int(length) > limits.upload:
        raise Refused(413, too_long(limits))


class GuardedRoute(APIRoute):
    """A route of the API with bounded requests, and errors in our own words wherever the router is included."""

    def get_route_handler(self) -> Callable:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Any:
            refusal: list[Refused] = []
            limits = studio_limits(request)
            try:
                check_length(request, limits)
                receive = limited(request.receive, limits)

                async def noted() -> dict[str, Any]:
                    try:
                        return await receive()
                    except Refused as error:  # FastAPI turns errors in a body into a 400
                        refusal.append(error)
                        raise

                return await handle(Request(request.scope, noted))
            except Exception as error:
                return error_response(refusal[0] if refusal else error)

        return guarded


def studio_limits(request: Request) -> Limits:
    studio = getattr(request.app.state, "studio", None)
    return studio.limits if studio else Limits()


def error_response(error: BaseException) -> JSONResponse:
    """An error as JSON: `{"error": "one sentence", "request_id": "..."}`. Unexpected errors are also logged."""
    name = secrets.token_hex(6)
    headers: dict[str, str] = {}
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, StarletteHTTPException):
        status, text = error.status_code, str(error.detail)
        headers |= error.headers or {}
    elif isinstance(error, RequestValidationError):
        status, text = 422, "; ".join(dict.fromkeys(map(fault, error.errors()[:4])))
    elif status == 500:
        _log.error("request %s", name, exc_info=error)
        text = "this is a fault of the program; its log tells more under the request id."
    else:
        text = sentence(error).replace("--", "")
    if status == 503:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    headers["X-Request-ID"] = name
    return JSONResponse({"error": text, "request_id": name}, status, headers)


def fault(item: dict[str, Any]) -> str:
    """A pydantic error as a line: the field's name, what was given, the rule."""
    place = ".".join(str(part) for part in item["loc"][1:]) or "the request"
    given = item.get("input")
    shown = f" {given!r}"[:60] if isinstance(given, int | float | str) else ""
    rule = item["msg"].removeprefix("Value error, ")
    return f"{place}{shown}: {rule[0].lower()}{rule[1:]}"


class OwnPageOnly:
    """ASGI: refuses requests for another host's name (DNS rebinding), and changes requested by another site's page.

    IP addresses always count as this server's names; other names must be given. The page itself, curl and programs do
    not send a foreign Origin.
    """

    def __init__(self, app: Any, *, names: tuple[str, ...] = ()):
        self.app, self.names = app, {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and (reason := self.reason(scope)):
            await error_response(HTTPException(403, reason))(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def reason(self, scope: dict[str, Any]) -> str | None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get("host", "")
        if not self.is_this_server(host_name(host)):
            return "this server goes by another name; use the address that it printed, or start it with --host NAME."
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("same-origin", "none"):
            return "another site's page may not use this server."
        return None

    def is_this_server(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self.names
        return True


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    name = host.lower()
    return name[: name.rfind("]") + 1] if name.startswith("[") else name.split(":")[0]
