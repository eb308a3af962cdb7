"""regression_model.py: tiny U-Nets, pictures of 16 pixels and of odd sizes; tests in which a model learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from Project7 import color, painting
from Project7.batch import Batch, BatchRandom
from Project7.checkpoints import load_model, save_checkpoint
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.encoder import SHIPPED
from Project7.guided_filter import enlarge
from Project7.loss_config import LossConfig
from Project7.model_config import RegressionConfig
from Project7.objective import Objective
from Project7.regression_model import RegressionColorizer
from Project7.training_config import DataConfig

LAB = {"outputs": "lab"}
VARIANTS = {
    "ab": {},
    "ab at half resolution": {"chroma_scale": 2},
    "ab at a quarter": {"chroma_scale": 4},
    "lab": LAB,
    "lab at half resolution": LAB | {"chroma_scale": 2},
    "lab at a quarter": LAB | {"chroma_scale": 4},
    "one level": {"channel_multipliers": (2,)},
    "odd widths, two layers": {"model_channels": 5, "channel_multipliers": (1, 3, 2), "layers": 2},
    "encoder": {"encoder": SHIPPED, "encoder_size": 32, "neck_width": 8, "chroma_scale": 2},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
every_size = pytest.mark.parametrize("size", [(16, 16), (13, 9), (1, 1), (1, 21), (7, 32)], ids=lambda s: f"{s}")


def tiny(**changes) -> RegressionColorizer:
    torch.manual_seed(0)
    return RegressionColorizer(RegressionConfig(**{"model_channels": 8, "channel_multipliers": (1, 2), **changes}))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(count: int = 3, size: tuple[int, int] = (16, 16), *, step: int = 0, image_share: float = 0.0) -> Batch:
    L = rand(count, 1, *size, seed=1).clamp(-1, 1)
    return Batch(L, rand(count, 2, *size, seed=2), BatchRandom(3, step, 0, count, count), image_share)


def loud(**changes) -> RegressionColorizer:
    """An untrained model with large answers; by default, a new one answers nearly the mean colour."""
    model = tiny(**changes)
    with torch.no_grad():
        model.unet.leave[-1].weight.mul_(20)
    return model


# ---- one training step


@every_variant
@every_size
def test_the_loss_is_finite_and_the_gradient_too(changes, size):
    model = tiny(**changes)
    step = model(make_batch(3, size))
    assert step.loss.shape == step.metrics["mse"].shape == (3,)
    assert step.loss.isfinite().all()
    assert (step.loss > 0).all()
    assert torch.equal(step.metrics["mse"], step.loss.detach())
    assert not step.metrics["mse"].requires_grad
    assert step.estimate is None
    step.loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_variant
def test_every_parameter_gets_a_gradient(changes):
    model = tiny(**changes)
    model(make_batch(3, (21, 16))).loss.mean().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@every_variant
def test_the_batch_is_left_as_it_is(changes):
    batch = make_batch(image_share=1.0)
    L, ab = batch.L.clone(), batch.ab.clone()
    tiny(**changes)(batch).loss.sum().backward()
    assert torch.equal(batch.L, L)
    assert torch.equal(batch.ab, ab)


def test_the_loss_is_the_mean_squared_error_of_ab():
    model, batch = tiny(), make_batch()
    expected = (model.colorize(batch.L) - batch.ab).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(model(batch).loss, expected)


@pytest.mark.parametrize("scale", [2, 4])
def test_at_a_part_of_the_resolution_the_truth_is_as_fine_as_can_be_answered(scale):
    """Answer and truth are both means over squares, enlarged along the edges of L; finer detail cannot be learnt, and
    is not counted as an error."""
    model, batch = tiny(chroma_scale=scale), make_batch(size=(16, 24))
    truth = enlarge(F.avg_pool2d(batch.ab, scale), F.avg_pool2d(batch.L, scale), batch.L)
    expected = (model.colorize(batch.L) - truth).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(model(batch).loss, expected)
    torch.testing.assert_close(model(batch._replace(image_share=1.0)).estimate.truth, truth)


@pytest.mark.parametrize("scale", [1, 2])
def test_with_lightness_its_mean_squared_error_is_added(scale):
    """Both errors are those of the answer to the faded photo, compared with the original."""
    model, batch = loud(**LAB, chroma_scale=scale), make_batch(image_share=1.0)
    faded = model.shown(batch.L, batch.random)
    answer = model.colorize(faded)
    step = model(batch)
    L_hat = faded + answer[:, :1]
    of_ab = (answer[:, 1:] - step.estimate.truth).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(step.loss, of_ab + (L_hat - batch.L).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(step.estimate.L_hat, L_hat)


@every_variant
@pytest.mark.parametrize("size", [(16, 16), (13, 9)])
def test_the_estimate_is_of_every_sample_with_a_gradient(changes, size):
    model = tiny(**changes)
    batch = make_batch(4, size, image_share=0.3)
    ab_hat, truth, L, weight, L_hat = model(batch).estimate
    assert torch.equal(L, batch.L)
    assert weight.tolist() == [1, 1, 1, 1]
    assert ab_hat.shape == truth.shape == (4, 2, *size)
    assert not truth.requires_grad
    assert not weight.requires_grad
    assert (L_hat is None) == (model.config.outputs == "ab")
    total = ab_hat.square().mean() + (0 if L_hat is None else L_hat.square().mean())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_sample_does_not_depend_on_those_beside_it():
    """There are no batch statistics, so micro-steps and processes agree with one pass over the whole batch."""
    model, batch = tiny(**LAB), make_batch(4)
    whole = model(batch).loss
    part = Batch(batch.L[2:], batch.ab[2:], BatchRandom(3, 0, 2, 2, 4))
    torch.testing.assert_close(model(part).loss, whole[2:])


@every_variant
def test_a_fresh_model_answers_nearly_the_mean_colour(changes):
    answer = tiny(**changes).colorize(make_batch(2, (32, 32)).L)
    assert answer.std() < 0.2


# ---- fading


@pytest.mark.parametrize("fade", [0.0, 0.3, 0.95])
def test_a_faded_photo_is_paler_by_so_much_at_most_and_no_lightness_leaves_its_range(fade):
    """The contrasts of many photos lie between 1 - fade and 1, and reach both ends."""
    model = tiny(**LAB, fade=fade)
    L = torch.tensor([-1.0, 1.0]).expand(400, 1, 1, 2)
    faded = model.shown(L, BatchRandom(0, 0, 0, 400, 400))
    contrast = (faded[..., 1] - faded[..., 0]).flatten() / 2
    assert faded.min() >= -1
    assert faded.max() <= 1
    assert contrast.min() >= 1 - fade - 1e-6
    assert contrast.max() <= 1 + 1e-6
    if fade:
        assert contrast.min() < 1 - 0.95 * fade
        assert contrast.max() > 1 - 0.05 * fade
        darkest, lightest = faded[..., 0].flatten(), faded[..., 1].flatten()
        room = 1 - contrast  # the level is anywhere between black and white
        level = (darkest + lightest) / 2 / room.clamp(min=1e-6)
        assert (level.min() < -0.9, level.max() > 0.9) == (True, True)
    else:
        assert torch.equal(faded, L)


def test_fading_is_the_same_for_the_same_step_and_other_for_another():
    model, batch = tiny(**LAB), make_batch()
    faded = model.shown(batch.L, batch.random)
    assert torch.equal(model.shown(batch.L, batch.random), faded)
    assert not torch.equal(model.shown(batch.L, batch.random._replace(step=1)), faded)
    assert not torch.equal(model.shown(batch.L, batch.random._replace(seed=4)), faded)
    own = model.shown(batch.L[1:], BatchRandom(3, 0, 1, 2, 3))
    assert torch.equal(own, faded[1:]), "a micro-step fades its photos as the whole batch would"


def test_a_model_of_ab_alone_is_shown_photos_as_they_are():
    model, batch = tiny(fade=0.9), make_batch()
    assert model.shown(batch.L, batch.random) is batch.L


def test_colouring_fades_nothing():
    """Only training photos are faded; a photo to be coloured is used as it is."""
    model, L = loud(**LAB, fade=0.9), make_batch().L
    assert torch.equal(model.colorize(L), model.answer(L))


# ---- colouring


@every_variant
@every_size
def test_any_size_comes_back_as_it_went_in(changes, size):
    model = tiny(**changes)
    L = make_batch(2, size).L
    answer = model.colorize(L)
    assert answer.shape == (2, 3 if model.restores else 2, *size)
    assert answer.isfinite().all()
    assert not answer.requires_grad


@every_variant
def test_the_same_picture_for_every_generator(changes):
    model, L = tiny(**changes), make_batch().L
    answer = model.colorize(L)
    for seed in (0, 1):
        assert torch.equal(model.colorize(L, generator=torch.Generator().manual_seed(seed)), answer)
    assert torch.equal(model.colorize(L, generator=[torch.Generator() for _ in L]), answer)


def test_hints_and_options_of_other_methods_are_refused():
    model, L = tiny(), make_batch().L
    with pytest.raises(ValueError, match="colour hints"):
        model.colorize(L, hints=(L, L))
    for option in ("steps", "sampler", "temperature", "variety"):
        with pytest.raises(TypeError, match=option):
            model.colorize(L, **{option: 1})


@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("size", [(1, 1), (19, 33)])
def test_any_number_of_levels(levels, size):
    model = tiny(model_channels=4, channel_multipliers=(1,) * levels)
    L = make_batch(1, size).L
    answer = model.colorize(L)
    assert answer.shape == (1, 2, *size)
    assert answer.isfinite().all()


def test_an_odd_size_is_padded_by_repeating_its_edge():
    """At every level, a flat picture looks as if it continued."""
    model = loud(channel_multipliers=(1, 1, 1))
    whole = model.colorize(torch.full((1, 1, 16, 16), 0.3))
    part = model.colorize(torch.full((1, 1, 13, 15), 0.3))
    torch.testing.assert_close(part, whole[..., :13, :15])


# ---- photos


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(60, 200, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))


def lightness(picture) -> Tensor:
    return color.rgb_to_lab(color.channels_first(np.asarray(picture)[..., :3])[None])[0, 0]


def colorizer(model: RegressionColorizer) -> Colorizer:
    return Colorizer(model.eval(), RunConfig(model=model.config, data=DataConfig(image_size=16)))


sizes = pytest.mark.parametrize("size", [(1, 1), (16, 16), (7, 16), (33, 47), (1, 200), (120, 81)])


@sizes
@pytest.mark.parametrize("scale", [1, 2])
def test_a_model_of_ab_keeps_the_lightness_of_the_photo(size, scale):
    """It is exact before rounding to bytes, and within one unit of L after it."""
    model, rgb = loud(chroma_scale=scale), photo(*size)
    answer = colorizer(model).colorize(rgb)
    assert answer.size == (size[1], size[0])
    assert np.ptp(np.asarray(answer).astype(int), axis=-1).max() > 5, "it is coloured"
    assert ((lightness(answer) - lightness(rgb)).abs() <= 1).float().mean() >= 0.999
    L = painting.full_lightness(rgb)
    assert torch.equal(color.join(L, model.colorize(L), model.ab_mean, model.ab_std)[:, :1], (L + 1) * 50)


@sizes
@pytest.mark.parametrize("scale", [1, 2])
def test_a_model_of_lab_changes_the_lightness_at_full_size(size, scale):
    """It changes where and by how much the model says: here by 0.2 in the network's range, which is 10 units of L."""
    model, rgb = tiny(**LAB, chroma_scale=scale), photo(*size)
    with torch.no_grad():
        model.unet.leave[-1].weight.zero_()
        model.unet.leave[-1].bias.copy_(torch.tensor([0.2, 0.5, 0.5]))
    answer = colorizer(model).colorize(rgb)
    assert answer.size == (size[1], size[0])
    torch.testing.assert_close(lightness(answer), lightness(rgb) + 10, atol=1.0, rtol=0)
    lab = color.rgb_to_lab(color.channels_first(np.asarray(answer))[None])
    expected = (model.ab_mean + 0.5 * model.ab_std)[:, None, None]
    torch.testing.assert_close(lab[0, 1:].mean(dim=(1, 2)), expected[:, 0, 0], atol=1.5, rtol=0)


@pytest.mark.parametrize(("change", "value"), [(3.0, 255), (-3.0, 0)])
def test_a_change_beyond_black_and_white_ends_there(change, value):
    model = tiny(**LAB)
    with torch.no_grad():
        model.unet.leave[-1].weight.zero_()
        model.unet.leave[-1].bias[0] = change
    answer = np.asarray(colorizer(model).colorize(photo(40, 30)))
    assert np.abs(answer.astype(int) - value).max() <= 2
    L = make_batch().L
    lab = color.join(L, model.colorize(L), model.ab_mean, model.ab_std)
    assert lab[:, 0].unique().tolist() == [100 if value else 0]


def test_bands_of_a_restored_photo_are_the_whole(monkeypatch):
    restorer, rgb = colorizer(loud(**LAB)), photo(90, 60)
    whole = np.asarray(restorer.colorize(rgb)).astype(int)
    monkeypatch.setattr(painting, "_ROWS", 60 * 7)
    assert np.abs(np.asarray(restorer.colorize(rgb)).astype(int) - whole).max() <= 1
    assert (lightness(whole.astype(np.uint8)) - lightness(rgb)).abs().mean() > 2, "it changes lightness"


@every_variant
def test_a_reloaded_model_colours_bit_for_bit(tmp_path, changes):
    model = loud(**changes, ab_mean=(1.0, 2.0), ab_std=(3.0, 4.0))
    config = RunConfig(model=model.config)
    path = tmp_path / "best_model.pth"
    save_checkpoint(path, {"model_state_dict": model.state_dict(), "config": config.model_dump(mode="json")})
    again, stored = load_model(path)
    assert stored == config
    L = make_batch(2, (13, 9)).L
    assert torch.equal(again.colorize(L), model.eval().colorize(L))
    assert (again.ab_mean.tolist(), again.ab_std.tolist()) == ([1, 2], [3, 4])


# ---- learning


def four_photos() -> Tensor:
    """Photos (4, 3, 16, 16) uint8 whose left and right halves differ in lightness, which tells their colours."""
    colours = torch.tensor([[200, 60, 60], [40, 90, 160], [90, 160, 60], [230, 200, 80]], dtype=torch.uint8)
    pictures = torch.stack([colours, colours.roll(1, dims=0)], dim=-1)  # (4, 3, 2)
    return pictures.repeat_interleave(8, dim=-1)[:, :, None].expand(-1, -1, 16, -1).contiguous()


def learn(
    model: RegressionColorizer, loss: LossConfig | None, photos: Tensor, *, steps: int = 60, rate: float = 1e-2
) -> list[float]:
    """Trains, and returns the loss of each step."""
    objective = Objective(None, loss=loss, image_size=16, device=torch.device("cpu"), method_loss=model.LOSS)
    objective.begin(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    constants, weights, losses = (model.ab_mean, model.ab_std), objective.weights(0), []
    for step in range(steps):
        batch = Batch(*color.split(photos, *constants), BatchRandom(0, step, 0, 4, 4), objective.image_share)
        terms = objective.terms(model(batch), *constants, weights)
        total = sum(weights[name] * value.mean() for name, value in terms.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize(
    ("loss", "model"),
    [
        (None, {}),
        (None, {"chroma_scale": 2}),
        ({"loss": "simple", "perceptual_weight": 0}, {}),
        ({"loss": "weighted"}, {}),
        ({"loss": "enhanced", "perceptual_weight": 0}, {}),
    ],
)
def test_it_learns_four_photos(loss, model):
    network = tiny(**model)
    losses = learn(network, loss and LossConfig(**loss), four_photos())
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:3]), losses[::10]
    L, ab = color.split(four_photos(), network.ab_mean, network.ab_std)
    right = F.cosine_similarity(network.colorize(L).flatten(1), ab.flatten(1))
    assert (right > 0.9).all()


@pytest.mark.slow
def test_it_learns_to_give_faded_photos_their_lightness_back():
    """Each photo has something black and something white in it, which show how far it has faded."""
    network, photos = tiny(**LAB, fade=0.8), four_photos()
    photos[..., :3], photos[..., -3:] = 0, 255
    loss = LossConfig(loss="enhanced", perceptual_weight=0, l_weight=3)
    losses = learn(network, loss, photos, steps=120, rate=3e-3)
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5]), losses[::10]
    L, _ = color.split(photos, network.ab_mean, network.ab_std)
    L = L.repeat(16, 1, 1, 1)
    faded = network.shown(L, BatchRandom(0, 1000, 0, 64, 64))  # faded as in no training step
    restored = faded + network.colorize(faded)[:, :1]
    assert (restored - L).abs().mean() < 0.5 * (faded - L).abs().mean()


# ---- the losses of losses.py on its answers


@pytest.mark.parametrize("scale", [1, 2])
def test_the_term_of_lightness_is_nothing_for_a_model_of_ab(scale):
    """It is 0 by construction, to the bit, because the lightness of the answer is that of the photo."""
    model, batch = loud(chroma_scale=scale), make_batch(image_share=1.0)
    loss = LossConfig(loss="enhanced", perceptual_weight=0)
    objective = Objective(None, loss=loss, image_size=16, device=torch.device("cpu"))
    terms = objective.terms(model(batch), model.ab_mean, model.ab_std, objective.weights(0))
    assert terms["l_luminance"].tolist() == [0, 0, 0]
    assert (terms["ab_chrominance"] > 0).all()


@pytest.mark.parametrize("loss", ["simple", "enhanced"])
def test_the_terms_of_lightness_reach_a_model_of_lab(loss):
    model, batch = loud(**LAB), make_batch(image_share=1.0)
    objective = Objective(
        None, loss=LossConfig(loss=loss, perceptual_weight=0), image_size=16, device=torch.device("cpu")
    )
    step = model(batch)
    terms = objective.terms(step, model.ab_mean, model.ab_std, objective.weights(0))
    difference = (step.estimate.L_hat - batch.L).square().mean(dim=(1, 2, 3)) / 4  # L / 100 is half of the network's
    if loss == "enhanced":
        torch.testing.assert_close(terms["l_luminance"], difference)
    else:
        torch.testing.assert_close(terms["lab"], (2 * terms["ab"] + difference) / 3)
    terms["l_luminance" if loss == "enhanced" else "lab"].mean().backward()
    assert model.unet.leave[-1].weight.grad[0].any(), "the channel of lightness"
