"""Downloads Tiny ImageNet: resumes an interrupted download, verifies it, unpacks it completely or not at all. Also
bounds the waiting time of downloads by libraries.
"""

import contextlib
import hashlib
import http.client
import shutil
import socket
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from Project7.atomic_file import write_text
from Project7.counting import Counting
from Project7.errors import ProjectError, UsageError, sentence

TINY_IMAGENET_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"  # of that archive, of 248,100,043 bytes
_MOST_RECEIVED, _MOST_UNPACKED = 1 << 30, 4 << 30  # bytes
_NAME = "tiny-imagenet-200"
_SILENCE = 30  # seconds without a byte before a connection is given up
_REACH = 5  # seconds within which the Hugging Face Hub must answer
_BLOCK = 1 << 18


def download_tiny_imagenet(to: Path, *, url: str = TINY_IMAGENET_URL, progress: Counting | None = None) -> Path:
    """Downloads and unpacks what is missing, and returns the folder `to`/tiny-imagenet-200.

    Raises ProjectError, with the cure, if the network or the archive is at fault.
    """
    folder, archive = to / _NAME, to / f"{_NAME}.zip"
    if (folder / "train").is_dir():
        return folder
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url} is not a web address; it must start with http:// or https://.")
    to.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        fetch(url, archive, progress)
    if url == TINY_IMAGENET_URL:
        check_archive(archive, _SHA256)
    unpack(archive, folder, progress)
    archive.unlink()
    return folder


def check_archive(archive: Path, sha256: str) -> None:
    """Raises ProjectError and removes the archive if it is not the known one."""
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        archive.unlink()
        raise ProjectError(
            f"What was downloaded is not the known Tiny ImageNet (SHA-256 {found[:12]}..., expected {sha256[:12]}...), "
            "and was deleted; run the command again, or give another address with --url."
        )


def fetch(url: str, target: Path, progress: Counting | None) -> None:
    """Downloads to `target`.part and renames it when it is complete.

    A part of the same file is continued (RFC 9110, section 14.2).
    """
    part, tag = target.with_suffix(".zip.part"), target.with_suffix(".zip.version")
    request = urllib.request.Request(url, headers={"User-Agent": "project7"})
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())  # if the file has changed, the server sends all of it
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE) as answer:
            receive(answer, part, tag, have if answer.status == 206 else 0, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the part is complete, or of another file
            part.unlink()
            return fetch(url, target, progress)
        raise ProjectError(f"{url} answers {error.code} {error.reason}; give another address with --url.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = sentence(getattr(error, "reason", None) or error)
        raise ProjectError(
            f"The download from {url} broke off ({reason}); run the command again to resume it."
        ) from None
    part.rename(target)
    tag.unlink(missing_ok=True)
    return None


def receive(answer, part: Path, tag: Path, have: int, progress: Counting | None) -> None:
    """Appends what the server sends to the first `have` bytes.

    Raises OSError if the server sends less than it announced.
    """
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if version and not version.startswith("W/"):
        write_text(tag, version)
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length and length.isdecimal() else 0
    if total > _MOST_RECEIVED:
        raise too_large(f"announces {total:,} bytes", part, tag)
    with open(part, "ab" if have else "wb") as file:
        while block := answer.read(_BLOCK):
            file.write(block)
            have += len(block)
            if have > _MOST_RECEIVED:
                raise too_large("does not end", part, tag)
            if progress:
                progress("downloading (bytes)", have, max(total, have))
    if have < total:
        raise OSError(f"only {have:,} of {total:,} bytes arrived")


def too_large(what: str, part: Path, tag: Path) -> ProjectError:
    part.unlink(missing_ok=True)
    tag.unlink(missing_ok=True)
    return ProjectError(
        f"The download {what}, but Tiny ImageNet has fewer than {_MOST_RECEIVED:,} bytes; give another --url."
    )


def unpack(archive: Path, folder: Path, progress: Counting | None) -> None:
    """Unpacks to a folder beside and renames it.

    The checksums inside the archive are verified; no member may be written outside the folder.
    """
    work = folder.with_name(f".{folder.name}-unpacking")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as members:
            names = members.namelist()
            if (size := sum(member.file_size for member in members.infolist())) > _MOST_UNPACKED:
                raise zipfile.BadZipFile(f"would take {size:,} bytes")
            strangers = [n for n in names if n.startswith(("/", "\\")) or ".." in Path(n).parts or ":" in n]
            if strangers or not any(name.startswith(f"{_NAME}/train/") for name in names):
                what = f"holds {strangers[0]!r}" if strangers else f"has no {_NAME}/train/"
                raise zipfile.BadZipFile(what)
            for number, name in enumerate(names, start=1):
                members.extract(name, work)
                if progress and (number % 500 == 0 or number == len(names)):
                    progress("unpacking", number, len(names))
        (work / _NAME).rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        archive.unlink()
        raise ProjectError(
            f"What was downloaded is not a complete Tiny ImageNet ({sentence(error)}), and was deleted; run the "
            "command again."
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends the downloads of this block after 30 s without a byte: torch.hub has no timeout and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def bounded_hub() -> Iterator[None]:
    """The same for a library that also asks the Hugging Face Hub, which retries for a minute without a network: if the
    Hub does not answer within 5 s, only its cache is used in this block."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_REACH)
    except Exception:  # requests, httpx and the Hub itself raise a dozen kinds
        constants.HF_HUB_OFFLINE = True
    try:
        with bounded():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
