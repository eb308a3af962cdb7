"""objective.py: which terms count and how much, the discriminator's own steps, and what a checkpoint keeps of it."""

import contextlib
import io
import types

import pytest
import torch
from torch import Tensor

from Project7 import color, losses
from Project7.batch import Batch, BatchRandom, Estimate, Step
from Project7.diffusion_model import DiffusionColorizer
from Project7.discriminator import adversarial_loss, discriminator_loss, feature_matching_loss
from Project7.loss_config import LOSS_WEIGHTS, PRESETS, LossConfig
from Project7.losses import make_loss
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.objective import Objective
from Project7.perceptual_loss import WeightsMissing
from Project7.regression_model import RegressionColorizer
from Project7.training_config import ObjectiveConfig

SIZE = 16
AB_MEAN, AB_STD = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])
ONE_PROCESS = types.SimpleNamespace(num_processes=1)
GOOD = torch.zeros(())  # the generator's gradient was finite
DOCUMENTS_KEYS = {"mse_weight", "perceptual_weight", "adversarial_weight", "use_gan"}
DOCUMENTS_GAN_KEYS = DOCUMENTS_KEYS | {"discriminator_state_dict", "discriminator_optimizer_state_dict"}
ALL_TERMS = {"mse": 1.0, "perceptual": 0.1, "adversarial": 0.01, "feature_matching": 0.5}


def make(*, active: bool = True, image_size: int = SIZE, seed: int = 0, exact_critic: bool = False, **settings):
    """An objective with untrained features, in its last stage."""
    config = ObjectiveConfig(**{"perceptual_net": "random", "gan_width": 8, **settings})
    device = torch.device("cpu")
    objective = Objective(config, image_size=image_size, device=device, seed=seed, exact_critic=exact_critic)
    objective.begin(10_000 if active else 0)
    return objective


def plain() -> Objective:
    objective = Objective(None, image_size=SIZE, device=torch.device("cpu"))
    objective.begin(0)
    return objective


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(**changes) -> DiffusionColorizer:
    torch.manual_seed(0)
    return DiffusionColorizer(DiffusionConfig(**{"features": (8, 16), "time_dim": 16, **changes}))


def make_batch(count: int = 6, image_share: float = 0.5, step: int = 0) -> Batch:
    random = BatchRandom(3, step, 0, count, count)
    return Batch(
        rand(count, 1, SIZE, SIZE, seed=1).clamp(-1, 1), rand(count, 2, SIZE, SIZE, seed=2), random, image_share
    )


def an_estimate(count: int = 3, weight: float = 1.0) -> Estimate:
    truth = rand(count, 2, SIZE, SIZE, seed=3)
    L = rand(count, 1, SIZE, SIZE, seed=4).clamp(-1, 1)
    return Estimate((-truth).requires_grad_(), truth, L, torch.full((count,), weight))


def part_of(estimate: Estimate, own: slice) -> Estimate:
    return Estimate(*(None if values is None else values[own] for values in estimate))


def settle(objective: Objective) -> Objective:
    """Lets the power iterations of spectral norm, one per forward pass, converge, so that answers repeat."""
    with torch.no_grad():
        for _ in range(300):
            objective.critic.discriminator(torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1, 2, SIZE, SIZE))
    return objective


def critics_opinions(objective: Objective, L: Tensor, estimate: Estimate) -> tuple[float, float]:
    with torch.no_grad():
        answers = [
            -adversarial_loss(objective.critic.discriminator(L, ab)).mean() for ab in (estimate.truth, estimate.ab_hat)
        ]
    return answers[0].item(), answers[1].item()


# ---- which terms, and how much


def test_without_a_configuration_the_methods_own_loss_is_all():
    objective = plain()
    assert objective.weights(10_000) == {"mse": 1.0}
    assert objective.image_share == 0
    assert not objective.has_critic
    assert objective.perceptual is objective.critic is None


def test_the_default_weights_are_those_of_the_document():
    assert make(gan=True).weights(10_000) == {"mse": 1.0, "perceptual": 0.1, "adversarial": 0.01}
    assert make().weights(10_000) == {"mse": 1.0, "perceptual": 0.1}


def test_a_term_without_weight_is_not_there_and_costs_nothing():
    objective = make(perceptual_weight=0)
    assert objective.weights(0) == {"mse": 1.0}
    assert objective.perceptual is None
    assert objective.image_share == 0
    assert make(perceptual_weight=0, gan=True).image_share == 0.25


def test_the_critics_opinion_rises_from_its_start_to_its_full_weight():
    objective = make(gan=True, gan_start=10, gan_warmup=4, adversarial_weight=0.5, feature_matching_weight=2.0)
    of = {step: objective.weights(step) for step in range(30)}
    assert all(set(of[step]) == {"mse", "perceptual"} for step in range(10))
    rise = [of[step]["adversarial"] / 0.5 for step in range(10, 30)]
    assert rise[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rise[5:]) == {1.0}
    for step in range(10, 30):
        assert of[step]["feature_matching"] == pytest.approx(4 * of[step]["adversarial"])


def test_without_start_and_warm_up_it_counts_fully_from_the_first_step():
    assert make(gan=True, gan_start=0, gan_warmup=0).weights(0)["adversarial"] == 0.01


@pytest.mark.parametrize("gan", [True, False])
def test_stages(gan):
    """Two epochs have the method's own loss at weight 1; then all terms count."""
    objective = make(gan=gan, stage1_epochs=2, mse_weight=3.0, gan_start=0)
    own = plain().score_name
    for epoch in (0, 1):
        assert objective.begin(epoch) == 1
        assert objective.weights(10_000) == {"mse": 1.0}
        assert objective.image_share == 0
        assert not objective.has_critic
        assert objective.name == objective.score_name == own
    for epoch in (2, 3, 100):
        assert objective.begin(epoch) == 2
        assert objective.weights(10_000)["mse"] == 3.0
        assert objective.has_critic == gan
        assert objective.image_share == 0.25
        assert objective.score_name != own


def test_without_stages_everything_counts_from_the_first_epoch():
    objective = make()
    assert objective.begin(0) == 0
    assert "perceptual" in objective.weights(0)
    assert plain().begin(0) == 0


# ---- names


def test_names_say_what_is_minimised():
    name = make(gan=True, feature_matching_weight=2.0).name
    for part in (
        "1 mse",
        "0.1 perceptual",
        "untrained",
        "0.25 of the timesteps",
        "0.01 adversarial",
        "2 feature matching",
    ):
        assert part in name
    assert plain().name == plain().score_name == "1 mse"


def test_the_critic_is_in_the_name_and_not_in_the_score():
    """The discriminator changes while it learns, so validation leaves it out."""
    with_critic, without = make(gan=True), make()
    assert with_critic.score_name == without.score_name == without.name
    assert with_critic.name != without.name


@pytest.mark.parametrize(
    "changes",
    [
        {"mse_weight": 2.0},
        {"perceptual_weight": 0.2},
        {"perceptual_weight": 0},
        {"image_share": 0.5},
        {"image_share": 0.251},
    ],
)
def test_scores_that_cannot_be_compared_have_different_names(changes):
    assert make(**changes).score_name != make().score_name


# ---- the terms


def test_terms_are_those_of_their_equations():
    objective, batch = settle(make(gan=True)), make_batch(4)
    estimate = Estimate(rand(2, 2, SIZE, SIZE, seed=7), batch.ab[[1, 3]], batch.L[[1, 3]], torch.tensor([0.5, 2.0]))
    step = Step(torch.arange(4.0), {}, estimate)
    terms = objective.terms(step, AB_MEAN, AB_STD, ALL_TERMS)
    assert list(terms) == ["mse", "perceptual", "adversarial", "feature_matching"]
    assert torch.equal(terms["mse"], step.loss)
    ab_hat, truth, L, weight, _ = estimate
    with torch.no_grad():
        fake, real = objective.critic.discriminator(L, ab_hat), objective.critic.discriminator(L, truth)
        distance = objective.perceptual.of_chroma(L, ab_hat, truth, AB_MEAN, AB_STD)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(terms["perceptual"], weight * distance, **close)
    torch.testing.assert_close(terms["adversarial"].detach(), weight * adversarial_loss(fake), **close)
    torch.testing.assert_close(terms["feature_matching"].detach(), weight * feature_matching_loss(real, fake), **close)


@pytest.mark.parametrize("names", [("mse",), ("mse", "perceptual"), ("mse", "adversarial")])
def test_only_terms_with_a_weight_are_computed(names):
    objective, batch = make(gan=True), make_batch()
    weights = {name: ALL_TERMS[name] for name in names}
    terms = objective.terms(tiny()(batch), AB_MEAN, AB_STD, weights)
    assert tuple(terms) == names


def test_image_terms_act_on_a_share_of_the_samples():
    objective, batch = make(gan=True), make_batch(16, image_share=0.25)
    step = tiny()(batch)
    terms = objective.terms(step, AB_MEAN, AB_STD, ALL_TERMS)
    assert terms["mse"].shape == (16,)
    assert {len(terms[name]) for name in ("perceptual", "adversarial", "feature_matching")} == {len(step.estimate.L)}
    assert 2 <= len(step.estimate.L) <= 6


def test_two_parts_of_a_batch_add_up_to_the_whole():
    """Each term is a sum over samples whose weights do not depend on the others, so micro-steps and processes agree."""
    objective, model, batch = settle(make(gan=True)), tiny(), make_batch(6)
    whole = objective.terms(model(batch), AB_MEAN, AB_STD, ALL_TERMS)
    sums = dict.fromkeys(whole, 0.0)
    for start, count in ((0, 2), (2, 4)):
        own = slice(start, start + count)
        part = Batch(batch.L[own], batch.ab[own], BatchRandom(3, 0, start, count, 6), 0.5)
        for name, values in objective.terms(model(part), AB_MEAN, AB_STD, ALL_TERMS).items():
            sums[name] += values.sum().item()
    assert sums == pytest.approx({name: values.sum().item() for name, values in whole.items()}, rel=1e-3, abs=1e-3)


def test_the_size_of_a_term_does_not_depend_on_its_share():
    """A perceptual distance of 1 for every sample adds up to about 1 per sample, at any share."""
    for share in (0.1, 0.25, 1.0):
        objective, model, total = make(image_share=share), tiny(features=(8,)), 0.0
        objective.perceptual = types.SimpleNamespace(of_chroma=lambda L, *rest: torch.ones(len(L)))
        model.denoise = lambda x_t, t, L, hints=None, knmethod_loss=None: x_t
        for step in range(100):
            batch = make_batch(16, image_share=objective.image_share, step=step)
            terms = objective.terms(model(batch), AB_MEAN, AB_STD, {"mse": 1.0, "perceptual": 0.1})
            total += terms["perceptual"].sum().item()
        assert total / 1600 == pytest.approx(1, rel=0.08)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_term_reaches_the_network(precision):
    objective, model, batch = make(gan=True), tiny(), make_batch()
    for name in ALL_TERMS:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = objective.terms(model(batch), AB_MEAN, AB_STD, ALL_TERMS)
        assert terms[name].dtype == torch.float32
        terms[name].sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert model.unet.conv_in.weight.grad.any()


def test_no_estimate_at_all_leaves_the_methods_loss():
    objective, batch = make(gan=True), make_batch(image_share=0.0)
    assert list(objective.terms(tiny()(batch), AB_MEAN, AB_STD, ALL_TERMS)) == ["mse"]


def test_a_batch_without_low_noise_adds_nothing_and_no_nan():
    """K = 0: the terms are empty, and everything that a step does still works."""
    objective, model, batch = make(gan=True, feature_matching_weight=1.0), tiny(), make_batch(2)
    step = model(batch)
    none = part_of(step.estimate, slice(0, 0))
    terms = objective.terms(step._replace(estimate=none), AB_MEAN, AB_STD, ALL_TERMS)
    assert {len(terms[name]) for name in ALL_TERMS} == {0, 2}
    sum(values.sum() for values in terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    before = [p.detach().clone() for p in objective.critic.discriminator.parameters()]
    measures = objective.critic.teach(none, 0.5)
    assert {len(values) for values in measures.values()} == {0}
    objective.critic.step(ONE_PROCESS, GOOD)
    for p, was in zip(objective.critic.discriminator.parameters(), before, strict=True):
        assert torch.equal(p, was)  # no weight decay either


# ---- the critic as a judge


def test_the_generators_pass_leaves_no_gradient_in_the_critic():
    objective, model, batch = make(gan=True), tiny(), make_batch()
    terms = objective.terms(model(batch), AB_MEAN, AB_STD, ALL_TERMS)
    sum(values.sum() for values in terms.values()).backward()
    for parameter in objective.critic.discriminator.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad  # it can learn again


def test_the_critic_can_learn_again_after_an_error(monkeypatch):
    """For example, after running out of memory the trainer continues with a smaller micro-step."""
    objective, batch = make(gan=True), make_batch()

    def out_of_memory(*pictures):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(objective.critic.discriminator, "forward", out_of_memory)
    with contextlib.suppress(torch.OutOfMemoryError):
        objective.terms(tiny()(batch), AB_MEAN, AB_STD, ALL_TERMS)
    assert all(p.requires_grad for p in objective.critic.discriminator.parameters())


def test_identical_features_match():
    """Truth and estimate are judged by the same discriminator, although each pass updates its spectral norm."""
    objective, batch = make(gan=True, feature_matching_weight=1.0), make_batch(3)
    step = Step(torch.zeros(3), {}, Estimate(batch.ab, batch.ab, batch.L, torch.ones(3)))
    assert objective.terms(step, AB_MEAN, AB_STD, ALL_TERMS)["feature_matching"].tolist() == [0, 0, 0]


def test_following_the_critic_convinces_it():
    objective, L = settle(make(gan=True)), rand(3, 1, SIZE, SIZE, seed=1)
    ab = torch.zeros(3, 2, SIZE, SIZE, requires_grad=True)
    Batch(L, ab, BatchRandom(0, 0, 0, 3, 3), 1.0)
    optimizer, losses = torch.optim.Adam([ab], lr=0.1), []
    for _ in range(5):
        step = Step(torch.zeros(3), {}, Estimate(ab, ab.detach(), L, torch.ones(3)))
        loss = objective.terms(step, AB_MEAN, AB_STD, {"adversarial": 1.0})["adversarial"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ---- the critic's own steps


def test_the_critics_loss_is_the_hinge_and_its_answers_are_reported():
    objective, L = settle(make(gan=True)), rand(2, 1, SIZE, SIZE, seed=1)
    estimate = an_estimate(2)._replace(weight=torch.tensor([0.5, 2.0]))
    with torch.no_grad():
        real, fake = (
            objective.critic.discriminator(L, estimate.truth),
            objective.critic.discriminator(L, estimate.ab_hat),
        )
    measures = objective.critic.teach(estimate._replace(L=L), 0.5)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(measures["critic"], estimate.weight * discriminator_loss(real, fake), **close)
    torch.testing.assert_close(measures["critic_of_truth"], -estimate.weight * adversarial_loss(real), **close)
    torch.testing.assert_close(measures["critic_of_estimate"], -estimate.weight * adversarial_loss(fake), **close)
    assert not any(values.requires_grad for values in measures.values())
    assert estimate.ab_hat.grad is None  # the generator learns nothing from it


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_critic_learns_to_tell_truth_from_estimate(precision):
    objective, L, estimate = make(gan=True, gan_learning_rate=2e-3), rand(4, 1, SIZE, SIZE, seed=1), an_estimate(4)
    of_truth, of_estimate = critics_opinions(objective, L, estimate)
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            objective.critic.teach(estimate._replace(L=L), 1 / 4)
        objective.critic.step(ONE_PROCESS, GOOD)
    truth_now, estimate_now = critics_opinions(objective, L, estimate)
    assert truth_now - estimate_now > of_truth - of_estimate + 0.5
    assert truth_now > estimate_now


def gradients_after(objective: Objective, *parts: tuple[Estimate, Tensor, float]) -> list[Tensor]:
    for estimate, L, share in parts:
        objective.critic.teach(estimate._replace(L=L), share)
    return [p.grad.clone() for p in objective.critic.discriminator.parameters()]


def test_gradients_of_micro_steps_add_up_to_that_of_the_batch():
    L, estimate = rand(4, 1, SIZE, SIZE, seed=1), an_estimate(4)
    halves = [(part_of(estimate, own), L[own], 1 / 4) for own in (slice(0, 1), slice(1, 4))]
    whole = gradients_after(settle(make(gan=True)), (estimate, L, 1 / 4))
    for ours, expected in zip(gradients_after(settle(make(gan=True)), *halves), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_two_processes_make_the_step_of_one():
    """Each process has the gradient of its part; the sum is reduced and then clipped, as one process would do it."""
    L, estimate = rand(4, 1, SIZE, SIZE, seed=1), an_estimate(4)
    first, second = ((part_of(estimate, own), L[own], 1 / 4) for own in (slice(0, 1), slice(1, 4)))
    other = torch.cat([g.flatten() for g in gradients_after(settle(make(gan=True)), second)])
    two_processes = types.SimpleNamespace(num_processes=2, reduce=lambda gradient, how: gradient + other)
    shared, alone = settle(make(gan=True)), settle(make(gan=True))
    gradients_after(shared, first)
    shared.critic.step(two_processes, GOOD)
    gradients_after(alone, (estimate, L, 1 / 4))
    alone.critic.step(ONE_PROCESS, GOOD)
    # Adam's first step is as long as the learning rate for any gradient, so the moments are compared.
    for ours, expected in zip(
        shared.critic.optimizer.state.values(), alone.critic.optimizer.state.values(), strict=True
    ):
        torch.testing.assert_close(ours["exp_avg"], expected["exp_avg"], rtol=1e-3, atol=1e-6)
    assert any(moments["exp_avg"].any() for moments in alone.critic.optimizer.state.values())


def snapshot(objective: Objective) -> dict[str, Tensor]:
    """The critic's weights and its AdamW's moments and step counts."""
    flat = {f"weight {n}": p.detach().clone() for n, p in objective.critic.discriminator.named_parameters()}
    for number, moments in objective.critic.optimizer.state_dict()["state"].items():
        flat |= {f"{name} {number}": value.clone() for name, value in moments.items()}
    return flat


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    objective, L, estimate = make(gan=True), rand(3, 1, SIZE, SIZE, seed=1), an_estimate()
    objective.critic.teach(estimate._replace(L=L), 1 / 3)
    objective.critic.step(ONE_PROCESS, GOOD)
    before = snapshot(objective)
    objective.critic.teach(estimate._replace(L=L), 1 / 3)
    next(objective.critic.discriminator.parameters()).grad.flatten()[0] = value
    objective.critic.step(ONE_PROCESS, GOOD)
    after = snapshot(objective)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)

    objective.critic.teach(estimate._replace(L=L), 1 / 3)  # and the next good one counts again
    objective.critic.step(ONE_PROCESS, GOOD)
    assert all(value.isfinite().all() for value in snapshot(objective).values())
    assert not torch.equal(snapshot(objective)["weight scales.0.0.bias"], before["weight scales.0.0.bias"])


def test_an_estimate_of_nan_changes_nothing():
    """A diverged generator gives such estimates; the vectors of spectral norm stay unchanged, too."""
    objective, L, estimate = make(gan=True), rand(3, 1, SIZE, SIZE, seed=1), an_estimate()
    objective.critic.teach(estimate._replace(ab_hat=estimate.ab_hat * torch.nan, L=L), 1 / 3)
    objective.critic.step(ONE_PROCESS, GOOD)
    assert all(value.isfinite().all() for value in objective.critic.discriminator.state_dict().values())


def test_gradients_are_used_once_and_clipped():
    objective, L, estimate = make(gan=True), rand(3, 1, SIZE, SIZE, seed=1), an_estimate()
    objective.critic.teach(estimate._replace(L=L), 1e6)
    objective.critic.step(ONE_PROCESS, GOOD)
    assert all(p.grad is None for p in objective.critic.discriminator.parameters())
    first_moments = [state["exp_avg"] for state in objective.critic.optimizer.state.values()]
    norm = torch.stack([m.square().sum() for m in first_moments]).sum().sqrt() / (1 - 0.5)  # beta_1 of the paper
    assert norm.item() == pytest.approx(1, rel=1e-3)


def test_gradients_of_a_micro_step_that_failed_are_forgotten():
    objective = make(gan=True)
    objective.critic.teach(an_estimate()._replace(L=rand(3, 1, SIZE, SIZE)), 1 / 3)
    objective.forget_gradients()
    assert all(p.grad is None for p in objective.critic.discriminator.parameters())
    make().forget_gradients()  # works without a critic, too


@pytest.mark.parametrize(("exact", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_critic_can_be_kept_out_of_autocast(exact, dtype):
    objective, batch, seen = make(gan=True, exact_critic=exact), make_batch(), []
    objective.critic.discriminator.register_forward_hook(
        lambda module, given, answers: seen.append(answers[0][-1].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        step = tiny()(batch)
        objective.terms(step, AB_MEAN, AB_STD, {"adversarial": 1.0})
        objective.critic.teach(step.estimate, 1.0)
    assert set(seen) == {dtype}


def test_the_identity_of_a_score_is_that_of_its_settings_and_not_of_its_name():
    """A name rounds numbers; and a discriminator takes part in training, but not in what is measured."""
    one, nearly = (make(perceptual_weight=weight) for weight in (0.1, 0.1 + 1e-9))
    assert one.score_name == nearly.score_name
    assert one.score_key != nearly.score_key
    assert one.score_key == make(perceptual_weight=0.1).score_key
    judged = make(perceptual_weight=0.1, gan=True)
    assert judged.score_key == one.score_key
    assert judged.key != one.key


# ---- its first weights


def test_the_critics_first_weights_are_a_function_of_the_seed():
    torch.manual_seed(1)
    first, state = make(gan=True, seed=4).critic.discriminator.state_dict(), torch.get_rng_state()
    again = make(gan=True, seed=4).critic.discriminator.state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # and the global generator has no part in it
    assert all(torch.equal(again[name], first[name]) for name in first)
    other = make(gan=True, seed=5).critic.discriminator.state_dict()
    assert not torch.equal(other["scales.0.0.bias"], first["scales.0.0.bias"])


def test_scales_and_width_are_settings():
    objective = make(gan=True, image_size=64, gan_scales=2, gan_width=12)
    assert [scale[0].out_channels for scale in objective.critic.discriminator.scales] == [12, 12]


def test_weights_that_cannot_be_had_are_never_replaced_in_silence(tmp_path):
    with pytest.raises(WeightsMissing, match="--perceptual-net random"):
        make(perceptual_net="vgg16", perceptual_weights=str(tmp_path / "none.pth"))
    make(perceptual_net="vgg16", perceptual_weights=str(tmp_path / "none.pth"), perceptual_weight=0)  # none is needed


# ---- saving and resuming


def stored(objective: Objective) -> dict:
    """The state_dict written to a file and read again, as a checkpoint keeps it."""
    file = io.BytesIO()
    torch.save(objective.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def taught(steps: int = 2, **settings) -> Objective:
    objective = make(gan=True, **settings)
    for _ in range(steps):
        teach(objective)
    return objective


def teach(objective: Objective) -> None:
    objective.critic.teach(an_estimate()._replace(L=rand(3, 1, SIZE, SIZE, seed=1)), 1 / 3)
    objective.critic.step(ONE_PROCESS, GOOD)


def test_the_state_has_the_documents_keys():
    assert plain().state_dict() == {
        "mse_weight": 1.0,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
        "use_gan": False,
    }
    without, with_gan = make(mse_weight=2.0).state_dict(), taught().state_dict()
    assert without == {"mse_weight": 2.0, "perceptual_weight": 0.1, "adversarial_weight": 0.0, "use_gan": False}
    assert set(with_gan) == DOCUMENTS_GAN_KEYS
    assert with_gan["use_gan"] is True
    assert with_gan["adversarial_weight"] == 0.01


def test_a_stored_critic_goes_on_bit_for_bit():
    objective = taught()
    again = make(gan=True, seed=9)
    assert again.load_state_dict(stored(objective)) is None
    for _ in range(2):
        teach(objective)
        teach(again)
    expected, found = objective.critic.discriminator.state_dict(), again.critic.discriminator.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert snapshot(objective).keys() == snapshot(again).keys()
    assert all(torch.equal(value, snapshot(again)[name]) for name, value in snapshot(objective).items())


def test_the_learning_rate_is_that_of_the_settings_not_of_the_file():
    again = make(gan=True, gan_learning_rate=0.5)
    assert again.load_state_dict(stored(taught())) is None
    assert [group["lr"] for group in again.critic.optimizer.param_groups] == [0.5]


def test_without_a_gan_a_stored_critic_is_let_go():
    objective = make()
    assert objective.load_state_dict(stored(taught())) is None
    assert set(objective.state_dict()) == DOCUMENTS_KEYS
    assert plain().load_state_dict(stored(taught())) is None


ANOTHER_SHAPE = {
    "width": lambda: stored(taught(gan_width=16))["discriminator_state_dict"],
    "scales": lambda: stored(make(gan=True, image_size=64, gan_scales=3))["discriminator_state_dict"],
    "another layout": lambda: {"model.0.weight": torch.zeros(3)},
    "empty": dict,
    "no dict": lambda: [1, 2],
    "no tensors": lambda: dict.fromkeys(make(gan=True).critic.discriminator.state_dict(), 0),
}


@pytest.mark.parametrize("kind", ANOTHER_SHAPE)
def test_a_critic_of_another_shape_is_said_and_a_new_one_starts(kind):
    objective, fresh = make(gan=True), make(gan=True)
    sentence = objective.load_state_dict({**stored(taught()), "discriminator_state_dict": ANOTHER_SHAPE[kind]()})
    assert sentence == "The discriminator of the checkpoint has another shape: a new one starts."
    assert_untouched(objective, fresh)


@pytest.mark.parametrize("state", [{}, {"mse_weight": 1.0}, {"discriminator_state_dict": None}])
def test_a_checkpoint_without_a_critic_is_said_and_a_new_one_starts(state):
    objective, fresh = make(gan=True), make(gan=True)
    assert objective.load_state_dict(state) == "The checkpoint has no discriminator: a new one starts."
    assert_untouched(objective, fresh)


def test_a_critic_with_nan_in_it_is_said_and_a_new_one_starts():
    """It would always answer NaN, and no gradient of the generator would be finite again."""
    objective, state = make(gan=True), stored(taught())
    state["discriminator_state_dict"]["scales.0.0.bias"][0] = torch.nan
    assert objective.load_state_dict(state)
    assert_untouched(objective, make(gan=True))


def assert_untouched(objective: Objective, fresh: Objective) -> None:
    expected, found = fresh.critic.discriminator.state_dict(), objective.critic.discriminator.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not objective.critic.optimizer.state
    teach(objective)  # and it learns


def test_a_critic_without_its_optimizer_is_kept_and_what_is_missing_is_said():
    objective, state = taught(), stored(taught())
    del state["discriminator_optimizer_state_dict"]
    again = make(gan=True)
    assert "AdamW starts afresh" in again.load_state_dict(state)
    expected = objective.critic.discriminator.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.critic.discriminator.state_dict().items())
    assert not again.critic.optimizer.state


# ---- a loss of losses.py in place of the method's own

EVERY_TERM = {  # of each loss, each with a weight; LPIPS by an untrained network
    "simple": {"loss": "simple", "diversity_weight": 0.1},
    "weighted": {"loss": "weighted", "perceptual_weight": 0.01},
    "enhanced": {"loss": "enhanced", "preset": "vibrant", "a_weight": 1.5, "b_weight": 0.5},
}
every_loss = pytest.mark.parametrize("kind", EVERY_TERM)


def with_loss(image_size: int = 32, **settings) -> Objective:
    config = LossConfig(**{"perceptual_net": "random", **settings})
    objective = Objective(None, loss=config, image_size=image_size, device=torch.device("cpu"))
    objective.begin(0)
    return objective


def regression(**changes) -> RegressionColorizer:
    torch.manual_seed(0)
    return RegressionColorizer(RegressionConfig(**{"model_channels": 8, "channel_multipliers": (1, 2), **changes}))


def photos(count: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Photos of muted colours, so that a mix of two of them in Lab is still an sRGB colour."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.35


def answered(rgb: Tensor, truth: Tensor, *, restores: bool) -> tuple[Step, Batch, Tensor]:
    """The step of a method that answers `rgb`, of which only ab is used unless it `restores` L."""
    (L_hat, ab_hat), (L, ab) = (color.split(picture, AB_MEAN, AB_STD) for picture in (rgb, truth))
    count = len(rgb)
    step = Step(torch.full((count,), 7.0), {}, Estimate(ab_hat, ab, L, torch.ones(count), L_hat if restores else None))
    seen = color.lab_to_rgb(color.join(L_hat if restores else L, ab_hat, AB_MEAN, AB_STD))
    assert seen.min() >= 0
    assert seen.max() <= 1
    return step, Batch(L, ab, BatchRandom(0, 0, 0, count, count), 1.0), seen


@pytest.mark.parametrize("restores", [False, True], ids=["ab", "lab"])
@every_loss
def test_the_terms_are_those_of_the_loss_called_on_the_pictures(kind, restores):
    """The loss is called in RGB as the documents do, with the lightness of the truth if the method keeps it."""
    objective = with_loss(**EVERY_TERM[kind])
    truth = photos(seed=1)
    step, _batch, seen = answered(photos(), truth, restores=restores)
    weights = objective.weights(0)
    terms = objective.terms(step, AB_MEAN, AB_STD, weights)
    loss = make_loss(LossConfig(**EVERY_TERM[kind], perceptual_net="random"), "cpu")
    total, expected = loss(seen, truth)
    assert terms.keys() == expected.keys() == weights.keys()
    assert all(values.shape == (3,) for values in terms.values())
    means = {name: values.mean().item() for name, values in terms.items()}
    assert means == pytest.approx({name: value.item() for name, value in expected.items()}, rel=2e-3, abs=1e-7)
    assert sum(weights[name] * mean for name, mean in means.items()) == pytest.approx(total.item(), rel=1e-3)
    if kind == "enhanced":
        assert (means["l_luminance"] > 1e-4) == restores  # 0 by construction for a model of ab alone
        assert restores or means["l_luminance"] == 0


@every_loss
def test_the_weights_are_those_of_the_configuration_from_the_first_step_to_the_last(kind):
    objective = with_loss(**EVERY_TERM[kind])
    expected = {
        "simple": {"perceptual": 1.0, "lab": 1.0, "ab": 2.0, "diversity": 0.1},
        "weighted": {"ab": 1.0, "perceptual": 0.01},
        "enhanced": {"perceptual": 0.3, "l_luminance": 0.2, "ab_chrominance": 4.0, "saturation": 1.0},
    }[kind]
    assert objective.begin(0) == objective.begin(50) == 0  # no stages
    assert objective.weights(0) == objective.weights(10_000) == objective.validation_weights() == expected
    assert objective.image_share == 1  # every sample, in every epoch
    assert not objective.has_critic
    objective.weights(0).clear()  # what is handed out is the caller's own
    assert objective.weights(0) == expected


@every_loss
def test_the_name_says_every_term_with_its_weight_and_its_network(kind):
    objective = with_loss(**EVERY_TERM[kind])
    assert objective.name == objective.score_name
    for name, weight in objective.weights(0).items():
        assert f"{weight:g} {name}" in objective.name
    assert "LPIPS of a random AlexNet, untrained" in objective.name
    assert "LPIPS" not in with_loss(**{**EVERY_TERM[kind], "perceptual_weight": 0}).name


DIFFERENT = [
    *({"loss": kind} for kind in LOSS_WEIGHTS),
    *({"loss": "enhanced", "preset": preset} for preset in PRESETS if preset != "balanced"),
    {"loss": "simple", "diversity_weight": 0.01},
    {"loss": "weighted", "perceptual_weight": 0.01},
    {"loss": "enhanced", "a_weight": 2.0},
    {"loss": "enhanced", "b_weight": 2.0},
    {"loss": "simple", "perceptual_weight": 0, "lab_weight": 0, "ab_weight": 1},
]


def test_losses_that_cannot_be_compared_have_different_names():
    """The best validation loss is kept under its name: after another loss or weight it must be measured again."""
    names = [with_loss(**settings).score_name for settings in DIFFERENT]
    alike = {name: [s for s, n in zip(DIFFERENT, names, strict=True) if n == name] for name in names}
    assert {name: settings for name, settings in alike.items() if len(settings) > 1} == {}
    assert with_loss(loss="enhanced").score_name == with_loss(loss="enhanced", preset="balanced").score_name


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("outputs", ["ab", "lab"])
@every_loss
def test_every_term_of_a_loss_reaches_the_network(kind, outputs, precision):
    """All terms except L for a model that keeps it; diversity has the smallest effect on the first answers, which are
    nearly flat."""
    objective, model = with_loss(**EVERY_TERM[kind]), regression(outputs=outputs)
    L, ab = color.split(photos(seed=1), AB_MEAN, AB_STD)
    batch = Batch(L, ab, BatchRandom(3, 0, 0, 3, 3), objective.image_share)
    for name in objective.weights(0):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            values = objective.terms(model(batch), AB_MEAN, AB_STD, objective.weights(0))[name]
        assert values.dtype == torch.float32
        if name == "l_luminance" and outputs == "ab":
            assert not values.any()
            continue
        values.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert model.unet.enter.weight.grad.any()


@every_loss
def test_two_parts_of_a_batch_add_up_to_the_whole_under_a_loss(kind):
    objective = with_loss(**EVERY_TERM[kind])
    step, _batch, _ = answered(photos(4), photos(4, seed=1), restores=True)
    whole = objective.terms(step, AB_MEAN, AB_STD, objective.weights(0))
    sums = dict.fromkeys(whole, 0.0)
    for start, stop in ((0, 1), (1, 4)):
        own = slice(start, stop)
        part = part_of(step.estimate, own)
        values = objective.terms(Step(step.loss[own], {}, part), AB_MEAN, AB_STD, objective.weights(0))
        sums = {name: sums[name] + values[name].sum().item() for name in sums}
    assert sums == pytest.approx({name: values.sum().item() for name, values in whole.items()}, rel=1e-4)


def test_an_estimate_of_some_of_the_samples_is_compared_with_their_own_lightness():
    """With wrong indices, the colours of one photo would be compared on the L of another."""
    objective = with_loss(loss="simple")
    step, _batch, _ = answered(photos(3), photos(3, seed=1), restores=False)
    whole = objective.terms(step, AB_MEAN, AB_STD, objective.weights(0))
    places = torch.tensor([2, 0])
    some = Estimate(*(values[places] for values in step.estimate[:3]), torch.ones(2))
    for name, values in objective.terms(step._replace(estimate=some), AB_MEAN, AB_STD, objective.weights(0)).items():
        torch.testing.assert_close(values, whole[name][places], rtol=1e-4, atol=1e-7)


def test_a_loss_without_a_perceptual_weight_builds_no_network(monkeypatch):
    monkeypatch.setattr(losses, "load_lpips", lambda *arguments: pytest.fail("a network was asked for"))
    for kind in EVERY_TERM:
        objective = with_loss(image_size=8, **{**EVERY_TERM[kind], "perceptual_weight": 0})
        assert objective.loss.perceptual is objective.perceptual is objective.critic is None


def test_lpips_that_cannot_be_had_is_never_replaced_in_silence(tmp_path):
    with pytest.raises(WeightsMissing, match="--perceptual-net random"):
        with_loss(perceptual_net="alex", perceptual_weights=str(tmp_path / "none.pth"))


@every_loss
def test_the_state_of_a_loss_is_its_weights_and_there_is_nothing_to_take_over(kind):
    objective = with_loss(**EVERY_TERM[kind])
    state = stored(objective)
    assert state == {f"{name}_weight": weight for name, weight in objective.weights(0).items()}
    other = with_loss(loss="simple", ab_weight=9)
    assert other.load_state_dict(state) is None
    assert other.weights(0)["ab"] == 9  # the weight of the settings, not of the file
    assert other.load_state_dict(stored(taught())) is None


def test_after_a_micro_step_that_failed_a_loss_goes_on():
    objective = with_loss(loss="weighted")
    objective.forget_gradients()
    step, _batch, _ = answered(photos(), photos(seed=1), restores=False)
    assert objective.terms(step, AB_MEAN, AB_STD, objective.weights(0))["ab"].isfinite().all()


def test_without_a_loss_a_regression_model_has_its_squared_error():
    objective = Objective(None, image_size=32, device=torch.device("cpu"), method_loss=RegressionColorizer.LOSS)
    objective.begin(0)
    assert objective.name == "1 mse"
    step, _batch, _ = answered(photos(), photos(seed=1), restores=False)
    terms = objective.terms(step, AB_MEAN, AB_STD, objective.weights(0))
    assert {name: values.tolist() for name, values in terms.items()} == {"mse": [7, 7, 7]}
