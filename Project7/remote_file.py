"""Parts of files at an address, s3://... or https://..., through fsspec: the extra `remote-data`. Imports no torch."""

import io
import os
import time
from collections.abc import Callable
from typing import Any

from Project7.errors import ProjectError, sentence
from Project7.photo_files import shown

_WAITS = (1.0, 4.0)  # seconds before a part that failed is asked for again
AHEAD = 1 << 20  # bytes: headers of small members come many at a time
_CHECKS = ("ETag", "Last-Modified", "LastModified", "mtime", "created")  # what file systems tell of a file's content


def is_remote(address: str) -> bool:
    return "://" in address


def describe(address: str) -> tuple[int, str]:
    """A file's size in bytes, and what changes when its content does. Raises ProjectError where it cannot be had."""
    facts = _ask(address, lambda system, path: system.info(path))
    if not facts.get("size"):
        raise ProjectError(f"The server of {shown(address)} does not say how large it is; copy the file from there.")
    return facts["size"], ":".join(str(facts[check]) for check in ("size", *_CHECKS) if check in facts)


def read_part(address: str, start: int, size: int) -> bytes:
    """`size` bytes from byte `start` on. Raises ProjectError where they cannot be had, after some attempts."""
    content = _ask(address, lambda system, path: system.cat_file(path, start=start, end=start + size))
    if len(content) != size:
        raise ProjectError(
            f"The server of {shown(address)} sent {len(content):,} bytes where {size:,} were asked for; it has to "
            "serve parts of files (HTTP range requests)."
        )
    return content


def _ask(address: str, what: Callable[[Any, str], Any]) -> Any:
    """Asks the file system of an address. A process that began as a copy of another gets a connection of its own."""
    import fsspec

    for wait in (*_WAITS, None):
        try:
            return what(*fsspec.url_to_fs(address))
        except (ImportError, ValueError) as error:  # ValueError: a kind of address that it does not know
            raise ProjectError(
                f"{shown(address)} cannot be read ({sentence(error)}); give an s3:// or https:// address, with "
                "pip install 'project7[remote-data]'."
            ) from None
        except FileNotFoundError:  # fsspec's word for a server that does not answer, too
            raise ProjectError(
                f"{shown(address)} was not found; check the address, the numbers in braces, and the network."
            ) from None
        except Exception as error:  # of the network, in the words of aiohttp, botocore, ...
            if wait is None:
                raise ProjectError(
                    f"{shown(address)} could not be read ({sentence(error)}); check the address and the network, and "
                    "resume the run."
                ) from None
            time.sleep(wait)
    raise AssertionError


class RemoteFile(io.RawIOBase):
    """A file at an address, for io.BufferedReader, which reads `AHEAD` bytes at a time."""

    def __init__(self, address: str, size: int):
        self.address, self.size, self.place = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.place))
        if count:
            buffer[:count] = read_part(self.address, self.place, count)
        self.place += count
        return count
