"""An exported model that colours photos with onnxruntime and NumPy alone, as the Colorizer does with torch.

What `project7 export` wrote is enough: project7.json, model.onnx, and context.onnx where there is an encoder. Of what
`colorize` can do it leaves out --denoise, other samplers than dpm++, and what only a network with its weights can tell.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from Project7 import array_hints, array_picture, array_sampler, working_size
from Project7.answer_config import GUIDED, STEPS
from Project7.answer_options import METHOD_OPTIONS
from Project7.array_hints import Hint, Spot
from Project7.array_picture import ArrayLightness
from Project7.errors import ProjectError, UsageError, sentence
from Project7.mark import marked
from Project7.photo import Photo, photo_digest

_FACTS = "project7.json"
_PACKAGE = Path(__file__).resolve().parent


def find_export(model: str | None, models_dir: Path) -> Path | None:
    """`--model`: an export's folder, or the name of one in the models folder or in the installed package -> the
    folder; None where it names none. Without a name, base, or the only one of the package."""
    if model is None:
        shipped = sorted(path.parent for path in (_PACKAGE / "models").glob(f"*/{_FACTS}"))
        return next((path for path in shipped if path.name == "base"), shipped[0] if len(shipped) == 1 else None)
    places = (Path(model).expanduser(), models_dir / model, _PACKAGE / "models" / model)
    return next((path for path in places if (path / _FACTS).is_file()), None)


class OnnxColorizer:
    """What colorize_files.py needs of a Colorizer, by onnxruntime.

    >>> OnnxColorizer(Path("base-onnx")).colorize_photos([open_photo("photo.jpg")], seeds=[0])
    """

    exported = True  # a Colorizer is not

    def __init__(self, folder: Path):
        """Raises UsageError where the folder is no export with ONNX, ProjectError where it is damaged."""
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            self.name, self.sha256, method = str(facts["model"]), str(facts["weights_sha256"]), facts["method"]
            self.trained_at, self.view_size = int(facts["working_size"]), facts["view_size"]
            self.mean, self.std = (np.array(facts[key], np.float32)[:, None, None] for key in ("ab_mean", "ab_std"))
            missing = facts["onnx"] is None or (method == "diffusion" and "usual" not in facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProjectError(f"{folder / _FACTS} is damaged ({sentence(error)}); export the model again.") from None
        if missing:
            raise UsageError(f"{folder} holds no ONNX of this version; export again: project7 export {self.name}.")
        self.folder, self.facts = folder, facts
        options = METHOD_OPTIONS["diffusion"] if method == "diffusion" else ()
        self.model = SimpleNamespace(OPTIONS=options, usual=facts.get("usual", {}))
        self.config = SimpleNamespace(model=SimpleNamespace(method=method))
        self.note = f"By onnxruntime, without torch: {self.name}, in {folder}"

    # -- the graphs --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def network(self) -> Any:
        return self._session("model.onnx")

    @functools.cached_property
    def context(self) -> Any:
        return self._session("context.onnx")

    def _session(self, file: str) -> Any:
        import onnxruntime

        try:
            return onnxruntime.InferenceSession(self.folder / file, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own kinds, which derive from Exception alone
            raise ProjectError(f"{self.folder / file} cannot be used ({sentence(error)}); export it again.") from None

    # -- photos ------------------------------------------------------------------------------------------------------

    def shapes(self, size: tuple[int, ...], chosen: int | None) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """The shapes of the pictures that the network sees of a photo (H, W). chosen: the working size, or None."""
        view = None if self.view_size is None else working_size.view_shape(size, self.view_size)
        return working_size.working_shape(size, self.trained_at, chosen, sees=view is not None), view

    def faded(self, photo: Photo) -> bool:
        return array_picture.faded(ArrayLightness(photo).plain)

    def colorize_photos(
        self,
        photos: Sequence[Photo],
        *,
        seeds: Sequence[int],
        working_size: int | None = None,
        hints: Sequence[Hint] = (),
        levels: str = "off",
        mark: bool = False,
        deep: bool = False,
        denoise: float = 0.0,
        saturation: float = 1.0,
        warmth: float = 0.0,
        **options: Any,
    ) -> list[list[np.ndarray]]:
        """As Colorizer.colorize_photos, one photo after the other."""
        if denoise:
            raise UsageError("--denoise needs the full installation: pip install project7.")
        show = marked if mark else np.asarray
        tone = {"saturation": saturation, "warmth": warmth}
        answers = []
        for photo in photos:
            size = photo.rgb.shape[:2]
            view = ArrayLightness(photo, levels=levels)
            small = array_picture.shrink(view.seen, self.shapes(size, working_size)[0])
            spots = array_hints.find_spots(hints, size, small)
            near = array_hints.nearness(small, spots)
            border = None if view.border is None else array_picture.resize(view.border, small.shape)
            noises = [array_sampler.Noise(f"{seed}/{photo_digest(photo)}") for seed in seeds]
            inputs = self.inputs(view.seen)
            likely = self.likelihoods(small, inputs, spots)
            found = self.answers(small, inputs, noises, spots, near, likely, **options)
            finished = (self.finish(ab, small, spots, near, border, **tone) for ab in found)
            answers.append([show(view.paint(small, ab, deep=deep)) for ab in finished])
        return answers

    def finish(
        self,
        ab: np.ndarray,
        small: np.ndarray,
        spots: Sequence[Spot],
        near: Sequence[np.ndarray],
        border: np.ndarray | None,
        *,
        saturation: float,
        warmth: float,
    ) -> np.ndarray:
        """An answer in the network's range -> Lab units, with a neutral border, the strength and the warmth that are
        wanted, then the hints; a change of L before it stays."""
        chroma = ab[-2:] * self.std + self.mean
        if border is not None:
            chroma = chroma * (1 - border)
        chroma = chroma * np.float32(saturation) + np.array([0, warmth], np.float32)[:, None, None]
        if spots:
            chroma = array_hints.hold(chroma, small, spots, near)
        return np.concatenate([ab[:-2], chroma])

    # -- answers -----------------------------------------------------------------------------------------------------

    def inputs(self, L: np.ndarray) -> dict[str, np.ndarray]:
        """The view of a photo for the encoder, if the model has one. L: (H, W), as it is to be seen."""
        if self.view_size is None:
            return {}
        return {"view": array_picture.view(L, working_size.view_shape(L.shape, self.view_size))[None, None]}

    def likelihoods(self, small: np.ndarray, inputs: dict[str, np.ndarray], spots: Sequence[Spot]) -> list[float]:
        """How likely each hinted colour was before it was given; none for a model that does not tell."""
        tells = self.config.model.method == "diffusion" and self.facts["hint_channels"] and self.facts["palette"]
        if not (spots and tells):
            return []
        logits, palette = self.known(small, inputs, ())["logits"][0], np.array(self.facts["palette"])
        return array_hints.likelihoods(spots, logits, palette, small.shape)

    def answers(
        self,
        small: np.ndarray,
        inputs: dict[str, np.ndarray],
        noises: Sequence[Any],
        spots: Sequence[Spot],
        near: Sequence[np.ndarray],
        likely: Sequence[float],
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """What the network answers to a photo, (2 or 3, h, w) in its range, for each noise. small: the working picture;
        likely: how likely the colours of the spots were."""
        options = self.model.usual | options
        told = options | {"calm": options["calm"] ** (1 - array_hints.trust(likely))} if likely else options
        if self.config.model.method != "diffusion":
            (answer, *_) = self.network.run(None, {"L": small[None, None], **inputs})
            yield from (answer[0] for _ in noises)
            return
        for noise in noises:
            start = self._start(small, noise, options["candidates"])
            ab = self.drawn(small, inputs, start, spots, **told)
            if likely:
                untold = self.drawn(small, inputs, start, (), **options)
                ab = untold + array_hints.influence(near, likely) * (ab - untold)
                lab = array_hints.corrected(ab * self.std + self.mean, small, spots, array_hints.trust(likely))
                ab = (lab - self.mean) / self.std
            yield ab

    def _start(self, small: np.ndarray, noise: Any, candidates: int) -> np.ndarray:
        """(K, 2, h, w): the noise that each candidate begins with."""
        shape = (2, *(-(-side // self.facts["chroma_scale"]) for side in small.shape))
        if self.view_size is None:  # models without an encoder came before noise for all sizes
            return np.stack([noise.normal(*shape) for _ in range(candidates)])
        return np.stack([array_sampler.scalable_noise(shape, noise) for _ in range(candidates)])

    def given(self, small: np.ndarray, spots: Sequence[Spot]) -> np.ndarray:
        """(1, C, h, w): the lightness of the cells, and hints for a model that was trained with some."""
        scale, fine = self.facts["chroma_scale"], self.facts["cell_side"]
        padded = array_picture.pad_to_multiple(small, scale)
        parts = [array_picture.cells(array_picture.cell_means(padded, scale // fine), fine)]
        if self.facts["hint_channels"]:
            parts.append(array_hints.hint_maps(spots, small.shape, self.mean[:, 0, 0], self.std[:, 0, 0], scale))
        return np.concatenate(parts)[None]

    def known(self, small: np.ndarray, inputs: dict[str, np.ndarray], spots: Sequence[Spot]) -> dict[str, np.ndarray]:
        """What context.onnx gives: `known`, `blind`, and the `logits` of a head of palette colours."""
        names = list(self.facts["context"]["outputs"])
        found = self.context.run(names, {"details": self.given(small, spots), **inputs})
        return dict(zip(names, found, strict=True))

    def drawn(
        self,
        small: np.ndarray,
        inputs: dict[str, np.ndarray],
        start: np.ndarray,
        spots: Sequence[Spot],
        *,
        sampler: str = "dpm++",
        steps: int = STEPS,
        guidance: float = 1.0,
        candidates: int = 1,
        calm: float = 0.0,
    ) -> np.ndarray:
        """An answer of a diffusion model, (2, h, w) in its range. start: (K, 2, h, w), noise."""
        if sampler != "dpm++":
            raise UsageError(f"--sampler {sampler} needs the full installation (pip install project7); use dpm++.")
        known = self.known(small, inputs, spots) if self.view_size is not None else {}
        given = self.given(small, spots)
        told = np.concatenate([given, known["known"]], axis=1) if known else given
        blind = np.concatenate([given, known["blind"]], axis=1) if known and guidance != 1 else None
        if guidance != 1 and not known:
            raise UsageError("--guidance is for models with an encoder, and this one has none; leave it out.")

        abar = np.array(self.facts["alphas_cumprod"])
        lowest, highest = (share * len(abar) for share in GUIDED)

        def predict(x: np.ndarray, told: np.ndarray, t: int) -> np.ndarray:
            noisy = np.concatenate([x, np.repeat(told, len(x), axis=0)], axis=1)
            return self.network.run(None, {"sample": noisy, "timestep": np.full(len(x), t, np.int64)})[0]

        def denoise(x: np.ndarray, t: int) -> np.ndarray:
            seeing = predict(x, told, t)
            if blind is None or not lowest <= t <= highest:
                return seeing
            return array_sampler.guide(seeing, predict(x, blind, t), guidance)

        if steps > len(abar):
            raise UsageError(f"--steps {steps} is out of range; this model was trained with {len(abar)} timesteps.")
        places = array_sampler.even_places(abar, steps)
        samples = array_sampler.sample(denoise, start, abar, places, predicts=self.facts["prediction_type"])
        return self.spread(self.settled(samples, known, calm), known, small, calm)

    def spread(self, answer: np.ndarray, known: dict[str, np.ndarray], small: np.ndarray, calm: float) -> np.ndarray:
        """The answer (2, h, w) -> ab (2, H, W) for the working picture: diffusion_model.spread."""
        scale = self.facts["chroma_scale"]
        if not (known and calm):
            return array_picture.expand(answer, small, scale)
        of_neck = [name.startswith("known ") for name in self.facts["context"]["outputs"]["known"]]
        lab, share = answer * self.std + self.mean, array_sampler.even_share(calm)
        ab = array_picture.spread(lab, known["known"][0, of_neck], small, scale, share)
        return ((ab - self.mean) / self.std).astype(np.float32)

    def settled(self, samples: np.ndarray, known: dict[str, np.ndarray], calm: float) -> np.ndarray:
        """samples (K, 2, h, w) -> the answer (2, h, w): diffusion_model.settle."""
        headed = bool(known) and self.facts["headed"]
        if len(samples) == 1 and not (calm and headed):
            return samples[0]
        lab = samples * self.std + self.mean
        likelihood, likely, means = None, None, [lab.mean(axis=0)] * (len(lab) > 1)
        if "logits" in known:
            palette = np.array(self.facts["palette"], dtype=np.float32)
            likely = array_sampler.likely_chroma(known["logits"][0], palette)
            likelihood = np.array([array_sampler.log_likelihood(known["logits"][0], palette, one) for one in lab])
        if headed:
            of_head = [name.startswith("mean ") for name in self.facts["context"]["outputs"]["known"]]
            means.append(known["known"][0, of_head] * self.std + self.mean)
        chosen = lab[array_sampler.choose(lab, likelihood)]
        answer = array_sampler.calmed(chosen, sum(means) / len(means), lab, calm, likely)
        return ((answer - self.mean) / self.std).astype(np.float32)
