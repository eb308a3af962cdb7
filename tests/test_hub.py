"""Models on a local hub: what is uploaded, what is downloaded, and the messages of every failure."""

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from Project7 import hub
from Project7.checkpoints import save_checkpoint
from Project7.cli import command
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError
from Project7.methods import build_model
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.training_config import DataConfig

KINDS = {
    "diffusion": DiffusionConfig(features=(8, 16), time_dim=16, timesteps=50),
    "classification": ClassificationConfig(width=8, blocks=(1, 1, 1, 1), bins=20, stem_stride=2),
    "regression": RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
}
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def colorizer(kind: str = "diffusion") -> Colorizer:
    torch.manual_seed(0)
    config = RunConfig(model=KINDS[kind], data=DataConfig(image_size=16, data=("/home/me/holiday", "samples")))
    return Colorizer(build_model(config.model).eval().requires_grad_(False), config)


class Hub:
    """As much of the Hub as an upload and a download need; repositories are dicts of files."""

    def __init__(self, status: int = 200):
        self.status, self.repos, self.asked = status, {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.path, self.headers.get("Authorization")))
                self.give(outer.post(self.path, body))

            def do_GET(self):
                self.give(*outer.get(self.path))

            do_HEAD = do_GET

            def give(self, content, tag: str | None = None):
                body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
                self.send_response(404 if content is None else outer.status)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if tag else "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                if tag:
                    self.send_header("ETag", f'"{tag}"')
                    self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def post(self, path: str, body: bytes):
        if path == "/api/repos/create":
            self.repos.setdefault("me/mine", {})
            return {"url": f"{self.url}/me/mine"}
        if "/preupload/" in path:
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos["me/mine"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/me/mine/commit/{COMMIT}", "commitOid": COMMIT}
        return {"errors": [], "warnings": []}  # of /api/validate-yaml

    def get(self, path: str):
        path = path.split("?")[0]
        repo = next((name for name in self.repos if f"/{name}/" in f"{path}/"), None)
        if repo is None:
            return None, None
        files = self.repos[repo]
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            return files.get(name), hashlib.sha1(files.get(name, b"")).hexdigest()
        entries = [
            {"type": "file", "path": n, "rfilename": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in files.items()
        ]
        return entries if "/tree/" in path else {"id": repo, "sha": COMMIT, "siblings": entries}, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


COMMIT = "a" * 40


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The Hub's library, reloaded because it reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported."""
    from huggingface_hub import constants

    def set_up(url: str, *, offline: bool = False) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")

    return set_up


def test_a_model_goes_to_the_hub_and_comes_back_online_and_offline(tmp_path, library):
    mine, weights = colorizer(), tmp_path / "mine" / "best_model.pth"
    weights.parent.mkdir()
    state = {"model_state_dict": mine.model.state_dict(), "config": mine.config.model_dump(mode="json")}
    save_checkpoint(weights, state)
    with Hub() as there:
        library(there.url)
        pushed = call(command, "push", weights, "me/mine", "--license", "mit")
        assert pushed == (
            0,
            f'Uploaded: {there.url}/me/mine\nFrom Python: Colorizer.from_pretrained("me/mine")\n',
            "",
        )
        same_colours(mine, Colorizer.from_pretrained("me/mine", device="cpu"))
        with pytest.raises(ProjectError, match=f"There is no model me/unknown at {there.url}, or it is private"):
            Colorizer.from_pretrained("me/unknown", device="cpu")
        files = there.repos["me/mine"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert ("/api/models/me/mine/commit/main", "Bearer hf_secret") in there.asked
    card = files["README.md"].decode()
    for line in ("license: mit", "library_name: project7", "pipeline_tag: image-to-image", "- image-colorization"):
        assert f"{line}\n" in card
    assert 'from_pretrained("me/mine")' in card
    assert not any(b"/home/me" in content for content in files.values())
    for offline in (True, False):  # the hub does not answer now, in offline mode or not
        library(there.url, offline=offline)
        same_colours(mine, Colorizer.from_pretrained("me/mine", device="cpu"))
        with pytest.raises(ProjectError, match="me/unknown is not in the Hub's cache"):
            Colorizer.from_pretrained("me/unknown", device="cpu")
    library(there.url, offline=True)
    with pytest.raises(ProjectError, match="HF_HUB_OFFLINE is set"):
        mine.push_to_hub("me/mine")


def same_colours(one: Colorizer, other: Colorizer) -> None:
    assert np.array_equal(np.asarray(one.colorize(PHOTO)), np.asarray(other.colorize(PHOTO)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_gives_the_same_colours(kind, tmp_path):
    mine = colorizer(kind)
    mine.save_pretrained(tmp_path)
    back = Colorizer.from_pretrained(tmp_path, device="cpu")
    same_colours(mine, back)
    assert back.config.data.data == ("holiday", "samples")
    assert (back.name, len(back.sha256)) == (tmp_path.name, 64)


def test_weights_that_fit_into_half_precision_take_half_the_bytes(tmp_path):
    mine = colorizer()
    first, *others = mine.model.parameters()
    for weights in others:
        weights.copy_(weights.half().float())
    mine.save_pretrained(tmp_path)
    stored = load_file(tmp_path / hub.WEIGHTS)
    for name, weights in mine.model.named_parameters():
        assert stored[name].dtype == (torch.float32 if weights is first else torch.float16)
        assert torch.equal(stored[name].float(), weights)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / hub.WEIGHTS).unlink(), "model.safetensors cannot be found"),
        (lambda folder: (folder / hub.CONFIG).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / hub.WEIGHTS).write_bytes(b"\x80\x04K\x01."), "cannot be read"),
        (lambda folder: retouched(folder / hub.WEIGHTS, lambda t: t + 1), "checksum does not match; save or download"),
    ],
)
def test_what_is_no_model_is_refused(spoil, said, tmp_path):
    colorizer().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ProjectError, match=said):
        Colorizer.from_pretrained(tmp_path, device="cpu")


def retouched(path: Path, change) -> None:
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path, about)


def test_a_card_that_is_there_stays_and_a_refusal_names_its_cure(library):
    with Hub() as there:
        library(there.url)
        there.repos["me/mine"] = {hub.CARD: b"my own words"}
        colorizer().push_to_hub("me/mine")
        assert there.repos["me/mine"][hub.CARD] == b"my own words"
        there.status = 403
        with pytest.raises(ProjectError, match=r"refuses me/mine \(403\); log in with `hf auth login`"):
            colorizer().push_to_hub("me/mine")
    with pytest.raises(ProjectError, match="cannot be reached for me/mine"):
        colorizer().push_to_hub("me/mine")
    with pytest.raises(UsageError, match=r"'not a/good/name' is neither a repository"):
        Colorizer.from_pretrained("not a/good/name", device="cpu")
