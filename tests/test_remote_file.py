"""remote_file.py: tars at an address, read in parts; a server that fails is not a broken photo."""

import contextlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from test_dataset import folder_of, opened
from test_tar_index import shards_of, tarred

from Project7 import remote_file
from Project7.errors import ProjectError, UsageError
from Project7.image_set import load_batches
from Project7.photo_source import scan


class Ranges(SimpleHTTPRequestHandler):
    """Serves parts of files, and counts the bytes sent."""

    sent: list[int]

    def log_message(self, *_):
        pass

    def do_GET(self):
        if "Range" not in self.headers:  # fsspec looks for a size
            super().do_GET()
            return
        first, last = (int(n) for n in re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        try:
            with open(self.translate_path(self.path), "rb") as file:
                file.seek(first)
                part = file.read(last - first + 1)
        except FileNotFoundError:
            self.send_error(404)
            return
        self.sent.append(len(part))
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class Whole(SimpleHTTPRequestHandler):
    """Sends the whole file whatever is asked for."""

    log_message = Ranges.log_message


@contextlib.contextmanager
def server(folder, kind=Ranges) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="pip install 'project7[remote-data]'")
    kind.sent = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(remote_file, "_WAITS", (0.0, 0.0))


def test_tars_at_an_address_are_the_data_of_their_copies_here(tmp_path):
    folder = folder_of(tmp_path / "photos", 21)
    here = shards_of(folder, tmp_path / "shards")
    with server(tmp_path) as address:
        there = here.replace(str(tmp_path), address)
        cached, lazy = (opened(there, tmp_path / "there", decode=way)[0] for way in ("cache", "on-the-fly"))
        local, _ = opened(here, tmp_path / "here")
        assert cached.fingerprint == lazy.fingerprint == local.fingerprint
        Ranges.sent.clear()
        batches = [np.array([3, 0]), np.array([7])]
        for workers in (0, 1):  # the worker is a copy of this process, and has a connection of its own
            for got, wanted in zip(load_batches(lazy.images, batches, num_workers=workers), batches, strict=True):
                assert np.array_equal(got.numpy(), local.images[wanted])
        sizes = [(folder / local.names[n]).stat().st_size for n in (3, 0, 7)]
        assert Ranges.sent == sizes * 2  # their files, and not a byte more
        Ranges.sent.clear()
        scan(there, tmp_path / "there")
        assert Ranges.sent == []  # their places are known


def test_a_large_tar_is_indexed_without_its_photos(tmp_path):
    tarred(tmp_path / "a.tar", {f"{n}.png": bytes(3 << 20) for n in range(3)})
    with server(tmp_path) as address:
        assert len(scan(f"{address}/a.tar", tmp_path / "cache").training) == 3
        assert sum(Ranges.sent) < 6 << 20


def test_any_file_system_of_fsspec(tmp_path):
    import fsspec

    tarred(tmp_path / "a.tar", {"a.png": b"123", "b.png": b"45"})
    fsspec.filesystem("memory").pipe("/project7/a.tar", (tmp_path / "a.tar").read_bytes())
    source = scan("memory://project7/a.tar", tmp_path / "cache")
    assert [source.storage.read(photo) for photo in source.training] == [b"123", b"45"]
    fsspec.filesystem("memory").pipe("/project7/a.tar", (tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(UsageError, match=r"memory://project7/a\.tar is cut short"):
        scan("memory://project7/a.tar", tmp_path / "cache")


def test_an_address_that_gives_nothing_ends_in_one_sentence(tmp_path, at_once):
    with server(tmp_path) as address, pytest.raises(ProjectError, match=r"a\.tar was not found; check the address"):
        scan(f"{address}/a.tar", tmp_path / "cache")
    with pytest.raises(ProjectError, match=r"was not found"):  # nobody is there any more
        scan(f"{address}/a.tar", tmp_path / "cache")
    with pytest.raises(ProjectError, match=r"nosuch://x/a\.tar cannot be read .*remote-data\]'\.$"):
        scan("nosuch://x/a.tar", tmp_path / "cache")


def test_a_server_without_parts_of_files_is_refused(tmp_path, at_once):
    tarred(tmp_path / "a.tar", {f"{n}.png": bytes(1 << 20) for n in range(2)})
    with server(tmp_path, Whole) as address, pytest.raises(ProjectError, match=r"range requests"):
        scan(f"{address}/a.tar", tmp_path / "cache")


def test_a_server_that_fails_leaves_no_photo_out(tmp_path, at_once, monkeypatch):
    """It is asked again, and then the run ends: to count the photo as broken would change the data."""
    import fsspec

    folder = folder_of(tmp_path / "photos", 40)
    address = shards_of(folder, tmp_path / "shards", each=100)
    memory = fsspec.filesystem("memory")
    memory.pipe("/project7/b.tar", (tmp_path / "shards" / "000.tar").read_bytes())
    assert address.endswith("{000..000}.tar")
    real, calls = type(memory).cat_file, []

    def flaky(self, path, **where):
        calls.append(path)
        if len(calls) % 3 or len(calls) > 60:
            raise ConnectionError("reset by peer")
        return real(self, path, **where)

    scan("memory://project7/b.tar", tmp_path / "cache")
    monkeypatch.setattr(type(memory), "cat_file", flaky)
    with pytest.raises(ProjectError, match=r"b\.tar could not be read \(ConnectionError: reset by peer\)"):
        opened("memory://project7/b.tar", tmp_path / "cache")
    assert len(calls) == 63  # the third attempt of each of 20 photos, and three in vain
