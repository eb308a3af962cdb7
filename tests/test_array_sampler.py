"""The ten steps in NumPy are those of torch and diffusers, from the same noise."""

import itertools

import numpy as np
import pytest
import torch

from Project7 import array_sampler, candidates, samplers
from Project7.batch import keyed_generator
from Project7.color_head import ColorHead
from Project7.model_config import DiffusionConfig
from Project7.palette import Palette


@pytest.mark.parametrize("shape", [(2, 256, 256), (2, 3, 4), (1, 4, 4), (2, 5, 7)])
def test_the_noise_of_a_key_is_that_of_torch(shape):
    generator, noise = keyed_generator("3/abc"), array_sampler.Noise("3/abc")
    for _ in range(2):  # candidates go on with the same generator
        assert np.allclose(noise.normal(*shape), torch.randn(*shape, generator=generator), atol=1e-5)
    assert abs(array_sampler.Noise("4/abc").normal(100, 100).std() - 1) < 0.02


def test_noise_for_all_sizes_is_that_of_torch():
    for size in ((16, 22), (40, 300)):
        wanted = samplers.scalable_noise((1, 2, *size), [keyed_generator("1/x")])[0]
        assert np.allclose(array_sampler.scalable_noise((2, *size), array_sampler.Noise("1/x")), wanted, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_its_steps_are_those_of_diffusers(predicts, steps):
    snr = predicts == "v_prediction"
    config = DiffusionConfig(prediction_type=predicts, zero_terminal_snr=snr, noise_shift=1.5 if snr else 1.0)
    sampler = samplers.make_sampler("dpm++", samplers.make_noise_scheduler(config), steps=steps)
    noise = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))

    def answer(x, t):  # any smooth function of both
        return np.tanh(x + 0.3) * np.float32(0.5 + int(t) / 2000)

    wanted = samplers.sample(
        lambda x, t: torch.from_numpy(answer(x.numpy(), t)), sampler, tuple(noise.shape), generator=None, noise=noise
    )
    abar = sampler.alphas_cumprod.numpy()
    places = array_sampler.even_places(abar, steps)
    assert places == sampler.timesteps.tolist()
    found = array_sampler.sample(answer, noise.numpy(), abar, places, predicts=predicts)
    assert np.allclose(found, wanted, atol=1e-3 if steps > 1 and snr else 2e-2, rtol=1e-3)


def test_the_same_answer_is_chosen_and_calmed():
    rng = np.random.default_rng(0)
    lab = rng.normal(0, 20, (4, 2, 6, 7)).astype(np.float32)
    samples = torch.from_numpy(lab)[None]
    head = ColorHead(8, 40, 0.0)
    head.set_palette(Palette(torch.from_numpy(rng.normal(0, 30, (40, 2))).float(), torch.ones(40)))
    logits = torch.from_numpy(rng.normal(0, 3, (1, 40, 6, 7))).float()
    wanted = torch.stack([head.log_likelihood(logits, samples[:, k]) for k in range(4)], dim=1)
    found = np.array([array_sampler.log_likelihood(logits[0].numpy(), head.centres.numpy(), one) for one in lab])
    assert np.allclose(found, wanted[0], atol=1e-4)
    for likelihood in (None, found):
        told = None if likelihood is None else wanted
        assert array_sampler.choose(lab, likelihood) == int(candidates.choose(samples, told))
    mean = lab.mean(axis=0)
    likely, wanted = array_sampler.likely_chroma(logits[0].numpy(), head.centres.numpy()), head.likely_chroma(logits)
    for part, of_torch in zip(likely, wanted, strict=True):
        assert np.allclose(part, of_torch[0], atol=1e-3)
    for calm, strong in itertools.product((0.0, 0.25, 1.0), (False, True)):
        told = (calm, wanted if strong else None)
        calmed = candidates.calmed(samples[:, 1], torch.from_numpy(mean)[None], samples, *told)[0]
        alone = array_sampler.calmed(lab[1], mean, lab, calm, likely if strong else None)
        assert np.allclose(alone, calmed, atol=1e-3)
