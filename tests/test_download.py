"""Tiny ImageNet from a local server: whole, cut off and resumed, refused."""

import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from Project7 import download
from Project7.download import download_tiny_imagenet
from Project7.errors import ProjectError, UsageError


def archive(**extra: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        for n in range(40):
            members.writestr(f"tiny-imagenet-200/train/n01/images/{n}.JPEG", hashlib.sha256(bytes([n])).digest() * 40)
        for name, content in extra.items():
            members.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Serves `content`; the first answers break off after `cuts` bytes. It remembers the Range of every request."""

    def __init__(self, content: bytes, *, cuts=(), ranges=True, status=200):
        self.content, self.cuts, self.ranges, self.status = content, list(cuts), ranges, status
        self.asked: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/tiny-imagenet-200.zip"

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and request.headers.get("If-Range") != etag:
            start = 0
        if self.status != 200:
            return request.send_error(self.status)
        if start >= len(self.content):
            return request.send_error(416)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.send_header("ETag", etag)
        request.end_headers()
        body = self.content[start:]
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)
        return None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def test_a_whole_download_is_unpacked_and_not_repeated(tmp_path):
    seen = []
    with Server(archive()) as server:
        folder = download_tiny_imagenet(tmp_path, url=server.url, progress=lambda *p: seen.append(p))
        assert len(list(folder.rglob("*.JPEG"))) == 40
        assert download_tiny_imagenet(tmp_path, url=server.url) == folder
    assert server.asked == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-imagenet-200"]
    assert {what for what, _, _ in seen} == {"downloading (bytes)", "unpacking"}


def test_a_cut_connection_is_resumed_where_it_broke_off(tmp_path):
    content = archive()
    with Server(content, cuts=[5000, 3000]) as server:
        for _ in range(2):
            with pytest.raises(ProjectError, match="run the command again"):
                download_tiny_imagenet(tmp_path, url=server.url)
        folder = download_tiny_imagenet(tmp_path, url=server.url)
    assert server.asked == [None, "bytes=5000-", "bytes=8000-"]
    assert len(list(folder.rglob("*.JPEG"))) == 40


def test_a_file_that_changed_in_between_starts_anew(tmp_path):
    with Server(archive(), cuts=[5000]) as server, pytest.raises(ProjectError):
        download_tiny_imagenet(tmp_path, url=server.url)
    with Server(archive(**{"tiny-imagenet-200/wnids.txt": b"new"})) as changed:
        folder = download_tiny_imagenet(tmp_path, url=changed.url)
    assert changed.asked == ["bytes=5000-"]
    assert (folder / "wnids.txt").read_bytes() == b"new"


def test_a_server_that_knows_no_ranges(tmp_path):
    with Server(archive(), cuts=[5000], ranges=False) as server:
        with pytest.raises(ProjectError):
            download_tiny_imagenet(tmp_path, url=server.url)
        assert download_tiny_imagenet(tmp_path, url=server.url).is_dir()


def test_a_part_that_is_too_long_starts_anew(tmp_path):
    content = archive()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    (tmp_path / "tiny-imagenet-200.zip.part").write_bytes(content + b"more")
    (tmp_path / "tiny-imagenet-200.zip.version").write_text(etag)
    with Server(content) as server:
        assert download_tiny_imagenet(tmp_path, url=server.url).is_dir()
    assert server.asked == [f"bytes={len(content) + 4}-", None]


def damaged() -> bytes:
    content = bytearray(archive())
    content[200] ^= 1  # inside the first picture
    return bytes(content)


@pytest.mark.parametrize(
    "content", [damaged(), b"<html>moved</html>", archive(**{"../evil": b"x"}), archive(**{"/evil": b"x"})]
)
def test_an_incomplete_archive_is_thrown_away(tmp_path, content):
    with Server(content) as server, pytest.raises(ProjectError, match="not a complete Tiny ImageNet"):
        download_tiny_imagenet(tmp_path / "data", url=server.url)
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_another_archive_under_the_known_address_is_thrown_away(tmp_path, monkeypatch):
    with Server(archive()) as server:
        monkeypatch.setattr(download, "TINY_IMAGENET_URL", server.url)
        with pytest.raises(ProjectError, match="is not the known Tiny ImageNet"):
            download_tiny_imagenet(tmp_path, url=server.url)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(download, "_SHA256", hashlib.sha256(archive()).hexdigest())
        assert download_tiny_imagenet(tmp_path, url=server.url).is_dir()


def test_a_download_without_end_and_an_archive_that_fills_the_disk_are_refused(tmp_path, monkeypatch):
    with Server(archive()) as server:
        monkeypatch.setattr(download, "_MOST_RECEIVED", 4000)
        with pytest.raises(ProjectError, match="announces"):
            download_tiny_imagenet(tmp_path, url=server.url)
        monkeypatch.setattr(download, "_MOST_RECEIVED", 1 << 30)
        monkeypatch.setattr(download, "_MOST_UNPACKED", 4000)
        with pytest.raises(ProjectError, match="would take"):
            download_tiny_imagenet(tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_and_no_server_at_all(tmp_path, monkeypatch):
    with Server(archive(), status=404) as server, pytest.raises(ProjectError, match="404"):
        download_tiny_imagenet(tmp_path, url=server.url)
    monkeypatch.setattr(download, "_SILENCE", 2)
    with pytest.raises(ProjectError, match="broke off"):
        download_tiny_imagenet(tmp_path, url=server.url)  # the port is closed by now
    with pytest.raises(UsageError, match="http"):
        download_tiny_imagenet(tmp_path, url="file:///etc/passwd")
