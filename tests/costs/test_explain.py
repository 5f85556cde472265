"""What a plan costs on a pipeline.

The oracles are the figures of a cached generation, inputs that were written by hand, and arithmetic.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from deepcache import CachePlan, DeepCacheError, UnsupportedUNetError, cached, models, uniform
from deepcache.cache.tracking import warn_if_it_cannot_pay
from deepcache.costs.explain import Explanation, explain
from deepcache.costs.macs import EVERYTHING, PAPER, Cost, cost
from deepcache.costs.parts import decoder_macs, num_tokens, text_encoder_macs
from deepcache.costs.profile import Profile
from deepcache.errors import DeepCacheWarning
from deepcache.models.architectures import skeleton
from deepcache.plan import Interval
from deepcache.unets.calls import parameters
from deepcache.unets.diffusers.inputs import example
from tests.problems import FRAMES, NAMES, TOKENS, inputs, latents, pipeline, shared, unet
from tests.topologies import CONDITION, CONTEXT_DIM

CLIP = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MAX_TOKENS = 12


def stable(**parts: Any) -> StableDiffusionPipeline:
    """A tiny Stable Diffusion pipeline; its tokenizer is not there, its text encoder takes 12 tokens."""
    parts = {"safety_checker": None, "feature_extractor": None, "tokenizer": None, **parts}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP, max_position_embeddings=MAX_TOKENS)),
        unet=UNet2DConditionModel(**CONDITION).eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        requires_safety_checker=False,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def known(name: str) -> Explanation:
    """Return the explanation of 50 steps at interval 3 and branch 0."""
    networks, tokens = skeleton(name)
    return explain(networks, 3, 50, name=name, context_tokens=tokens)


def planned(name: str, *, num_steps: int = 50, interval: int = 3, branch: int = 0, order: int = 0) -> Explanation:
    return replace(known(name), plan=uniform(num_steps, interval, branch, order))


@pytest.mark.parametrize(
    ("name", "num_steps", "parts"),
    [
        ("mini-ldm", None, ["vqvae decoder"]),  # the pipeline tells how many steps it takes
        ("mini-ddpm", 50, []),
        ("mini-sd", 50, ["text_encoder", "vae decoder"]),
    ],
)
def test_a_skeleton_costs_what_the_pipeline_costs(name: str, num_steps: int | None, parts: list[str]) -> None:
    loaded = explain(models.load(name), 3, num_steps, name=name)
    assert loaded == known(name)
    assert [part.name for part in loaded.parts] == parts


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_tells_the_inputs(name: str) -> None:
    """The oracle is inputs that were written by hand."""
    model = shared(name)
    told = example(model, context_tokens=1 if name == "svd" else TOKENS, num_frames=FRAMES)
    expected = shapes(model, inputs(name, batch=1))
    if name == "kandinsky-2.2":  # an image stands for the context, which is not looked at
        expected["encoder_hidden_states"] = None
    assert shapes(model, told) == expected


def shapes(model: nn.Module, call: Any) -> dict[str, Any]:
    """Return the shapes of the arguments of a call by name."""
    given = {**dict(zip(parameters(type(model)), call[0], strict=False)), **call[1]}
    given |= given.pop("added_cond_kwargs", {})
    given.pop("timestep")
    return {key: value.shape if isinstance(value, Tensor) else value for key, value in given.items()}


@pytest.mark.parametrize("name", ["ddpm", "animatediff"])
def test_a_call_that_was_made_gives_what_the_configuration_gives(name: str) -> None:
    args, kwargs = inputs(name, batch=2)
    told = explain(shared(name), 2, 5, call=(args, kwargs))
    assert told == explain(shared(name), 2, 5, context_tokens=TOKENS, num_frames=FRAMES)
    assert told.cost == cost(shared(name), *args, **kwargs)


@pytest.mark.parametrize("order", [0, 1, 2, "auto"])
@pytest.mark.parametrize(("num_steps", "interval", "shallow_every"), [(12, 4, 2), (12, 6, 3), (5, 5, 3)])
def test_a_plan_with_shallow_and_idle_steps_keeps_features_and_outputs(
    order: Any, num_steps: int, interval: int, shallow_every: int
) -> None:
    """An exact law: as many bytes are kept as explained, outputs among them; order "auto" may keep fewer."""
    pipe, plan = stable(), uniform(num_steps, interval, 1, order, shallow_every=shallow_every)
    assert plan.num_shallow
    assert plan.num_idle
    told = explain(pipe, plan)
    with cached(pipe, plan) as cache:
        generate(pipe, num_steps)
    kept = cache.generations[-1].feature_bytes
    assert told.feature_bytes == kept or (order == "auto" and told.feature_bytes > kept)
    assert f"and {told._num_outputs} output" in str(told)


def test_the_sample_is_the_one_that_is_denoised_wherever_it_stands() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet("ddpm")

        def forward(self, context: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.inner(x + context.mean(), t).sample

    (x, t, *_), _ = inputs("ddpm")
    told = explain(Turned(), Interval(2, -1), 5, call=((torch.ones(len(x), 3, 7), x, torch.as_tensor(t)), {}))
    assert told.sample == (1, *x.shape[1:])


@pytest.mark.parametrize(("branch", "order"), [(0, 0), (3, 1), (1, 2), (-1, 1), (0, "auto")])
def test_a_cached_generation_does_what_was_explained(branch: int, order: Any) -> None:
    """An exact law: the full steps of the plan ran, and as many bytes were kept as explained."""
    pipe = stable()
    told = explain(pipe, Interval(2, branch, order, last_step_full=True), 6)
    with cached(pipe, interval=2, branch=branch, order=order, last_step_full=True) as cache:
        generate(pipe, 6)
    generation = cache.generations[-1]
    assert (told.plan.num_steps, told.plan.full_steps) == (generation.num_steps, generation.full_steps)
    assert told.feature_bytes == generation.feature_bytes
    assert told.cost == cost_of_stable()


def generate(pipe: StableDiffusionPipeline, num_steps: int) -> None:
    embeds = torch.randn(1, MAX_TOKENS, CONTEXT_DIM, generator=torch.Generator().manual_seed(0))
    pipe(prompt_embeds=embeds, num_inference_steps=num_steps, guidance_scale=1.0, output_type="latent")


@cache
def cost_of_stable() -> Cost:
    return cost(stable().unet, torch.empty(1, 4, 8, 8), 0, torch.empty(1, MAX_TOKENS, CONTEXT_DIM))


def test_half_precision_keeps_half_of_the_bytes() -> None:
    assert 2 * explain(unet("ddpm").half(), 2, 5).feature_bytes == explain(unet("ddpm"), 2, 5).feature_bytes


def test_no_more_features_are_kept_than_there_are_full_steps() -> None:
    told = [planned("sd-1.5", interval=30, order=order) for order in (0, 1, 2)]
    assert [each.feature_bytes / each.bytes_each for each in told] == [1, 2, 2]
    assert planned("sd-1.5", order=2).feature_bytes == 3 * planned("sd-1.5", order=0).feature_bytes


@pytest.mark.parametrize("branch", [0, 2, 3, 5])
def test_the_feature_enters_where_the_branch_cuts(branch: int) -> None:
    """An exact law for two levels of two resnets: they push six skips, and the last one is popped first."""
    told = explain(shared("ddpm"), Interval(2, branch), 5)
    assert told.enters == f"where up_blocks.{1 - branch // 3}.resnets.{2 - branch % 3} begins"
    assert [stage.name for stage in told.cost.up] == [f"up_blocks.{1 - b // 3}.{2 - b % 3}" for b in range(6)]
    side, channels = (8, 8) if branch < 2 else (8, 16) if branch == 2 else (4, 16)
    assert told.feature == ((channels, side, side),)


def test_stable_diffusions_feature_has_the_known_size() -> None:
    assert known("sd-1.5").feature == ((320, 64, 64),)
    assert planned("sd-1.5", order=0).feature_bytes == 4 * 320 * 64 * 64


def test_bounds_are_macs_uncached_over_cached() -> None:
    """The oracle is arithmetic by hand."""
    told = known("sd-1.5")
    text, vae = (part.macs for part in told.parts)
    cached_macs = 17 * told.full + 33 * told.cost.shallow(0, EVERYTHING)
    assert told.bound(whole=False) == pytest.approx(50 * told.full / cached_macs)
    assert told.bound(whole=False, guided=True) == told.bound(whole=False)
    assert told.bound() == pytest.approx((50 * told.full + text + vae) / (cached_macs + text + vae))
    assert told.bound(guided=True) == pytest.approx(
        (100 * told.full + 2 * text + vae) / (2 * cached_macs + 2 * text + vae)
    )
    assert 1 < told.bound() < told.bound(guided=True) < told.bound(whole=False) < 50 / 17


def test_a_size_in_pixels_is_that_of_the_image() -> None:
    pipe = stable()
    assert explain(pipe, 2, 5, height=16, width=16) == explain(pipe, 2, 5)  # two pixels a place of the sample
    wide = explain(pipe, 2, 5, height=16, width=32)
    assert wide.sample == (1, 4, 8, 16)
    assert wide.parts[-1].macs == decoder_macs(pipe.vae, (8, 16))
    assert explain(pipe.unet, 2, 5, height=8, width=16).full == explain(pipe.unet, 2, 5, call=inputs_of(8, 16)).full


def inputs_of(height: int, width: int) -> Any:
    return (torch.empty(2, 4, height, width), 0, torch.empty(2, 77, 8)), {}


def test_a_prompt_is_as_long_as_the_tokenizer_says() -> None:
    pipe = stable()
    assert num_tokens(pipe) == MAX_TOKENS  # the text encoder's limit
    pipe.tokenizer = SimpleNamespace(model_max_length=10**30)  # transformers' word for no limit
    assert num_tokens(pipe) == MAX_TOKENS
    pipe.tokenizer = SimpleNamespace(model_max_length=7)
    told = explain(pipe, 2, 5)
    assert told.context_tokens == 7
    assert told.parts[0].macs == text_encoder_macs(pipe.text_encoder, 7)
    assert explain(pipe, 2, 5, context_tokens=3).context_tokens == 3
    assert explain(pipeline(), 2, 5).context_tokens == 1  # a class
    assert explain(shared("no-attention"), 2, 5).context_tokens == 77


def test_networks_that_are_not_counted_are_named() -> None:
    pipe = stable()
    pipe.controlnet, pipe.vae = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    told = explain(pipe, 2, 5)
    assert set(told.uncounted) == {"controlnet", "vae"}  # and the latter has no decoder
    assert [part.name for part in told.parts] == ["text_encoder"]
    assert "not counted: " in str(told)


def test_guidance_is_an_option_of_conditional_unets_without_a_guidance_embedding() -> None:
    assert known("sd-1.5").may_guide
    assert not known("ddpm-cifar10").may_guide
    assert not explain(unet("timestep-cond"), 2, 5).may_guide
    assert "with guidance" in str(known("sd-1.5"))
    assert "guidance" not in str(known("ddpm-cifar10"))


def test_nothing_of_the_pipeline_changes() -> None:
    pipe = stable()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with cached(pipe, interval=2) as cache:
        assert explain(pipe, cache.plan, 5) == explain(stable(), 2, 5)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert not any(
        module._forward_hooks for part in (pipe.unet, pipe.vae, pipe.text_encoder) for module in part.modules()
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"interval": 1}, "all 50 steps are full, so that nothing is cached"),
        ({"interval": 3, "num_steps": 1}, "the only step is full"),
        ({"interval": 2, "num_steps": 4}, "4 steps, as few-step models (LCM, Turbo) take"),
        ({"interval": 3, "branch": 11}, "1.01 times faster at best"),
        ({"interval": 50}, "step 0 alone is full"),
        ({"interval": 30, "order": 2}, "order 2 takes 3 full steps to come into force; this plan has 2"),
    ],
)
def test_a_plan_that_cannot_pay_is_warned_of(arguments: dict[str, int], reason: str) -> None:
    told = planned("sd-1.5", **arguments)
    assert [line for line in told.warnings if reason in line]
    assert "warning: " in str(told)


def test_a_plan_that_can_pay_has_no_warning() -> None:
    assert known("sd-1.5").warnings == planned("sd-1.5", num_steps=5).warnings == ()
    assert "warning" not in str(known("sd-1.5"))


@pytest.mark.parametrize("name", ["sd-1.5", "mini-ldm", "ddpm-cifar10"])
@pytest.mark.parametrize(
    "arguments", [{}, {"order": 2, "num_steps": 250}, {"num_steps": 4, "branch": 2}, {"interval": 1}, {"branch": -1}]
)
def test_the_page_has_aligned_columns_and_at_most_100_characters_a_line(name: str, arguments: dict[str, int]) -> None:
    told = planned(name, **arguments)
    lines = str(told).splitlines()
    assert max(map(len, lines)) <= 100
    table = lines[lines.index("") + 1 :]
    table = table[: table.index("")]
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table[1:] if not line.startswith(">")] == [
        str(b) for b in range(-1, told.cost.num_branches) if b != told.plan.branch
    ]
    assert table[told.plan.branch + 2].startswith(f">{told.plan.branch:>7}")
    assert "no stage runs" in table[1]
    assert " 0.0% " in table[1]
    stages = zip(told.cost.down, told.cost.up, table[2:], strict=True)
    assert all(down.name in line and up.name in line for down, up, line in stages)


def test_the_page_of_macs_has_the_same_table() -> None:
    told = known("sd-1.5")
    table = str(told).replace(">", " ").split("\n\n")[1]
    assert table in Profile("sd-1.5", told.cost, EVERYTHING, 77, 50, interval=3).page()
    other = Profile("sd-1.5", told.cost, PAPER, 77, 50, interval=3)
    assert table not in other.page()  # test of the test: the convention matters


def test_figures_for_machines_are_those_of_the_page() -> None:
    profile = Profile("sd-1.5", known("sd-1.5").cost, PAPER, 77, 50, interval=3, branch=2)
    found = profile.for_machines()
    (line,) = found["branches"]
    for macs in (found["full"], found["full_with_attention"], line["shallow"], line["mean"]):
        assert f" {macs / 10**9:.2f} G" in profile.page()
    assert f"{line['macs_ratio']:.2f}" in profile.page()
    assert len(profile.page(layer_wise=True).splitlines()) == len(profile.page().splitlines()) + 2 + len(
        found["stages"]
    )


def test_a_video_and_an_image_score_network_have_pages() -> None:
    assert "MACs of one video" in str(explain(unet("svd"), 2, 25))
    assert " x " in str(explain(unet("ncsn++"), 2, 25))


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: explain(unet("ddpm"), 2), DeepCacheError, "expected num_steps"),
        (lambda: explain(unet("ddpm"), 0, 5), DeepCacheError, "expected interval to be a whole number"),
        (lambda: explain(unet("ddpm"), 2, 0), DeepCacheError, "expected num_steps to be a whole number"),
        (lambda: explain(unet("ddpm"), uniform(9, 2), 5), DeepCacheError, "the plan is for 9 U-Net calls"),
        (lambda: explain(unet("ddpm"), Interval(2, 6), 5), DeepCacheError, r"expected branch 0\.\.5"),
        (lambda: explain(unet("ddpm"), 2, 5, height=8), DeepCacheError, "expected height and width together"),
        (lambda: explain(unet("ddpm", sample_size=None), 2, 5), DeepCacheError, "pass height and width"),
        (lambda: explain(unet("svd"), 2, 5, num_frames=0), DeepCacheError, "expected num_frames"),
        (lambda: explain(nn.Conv2d(1, 1, 1), 2, 5), UnsupportedUNetError, "a Conv2d tells no inputs"),
        (
            lambda: explain(unet("kandinsky-2.2", addition_embed_type="image_hint"), 2, 5),
            UnsupportedUNetError,
            "does not tell all inputs .* pass call=",
        ),
    ],
)
def test_what_cannot_be_explained_is_one_line(run: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "num_steps"),
    [
        (Interval(3), 1),
        (Interval(2), 4),
        (Interval(2, last_step_full=True), 2),
        (CachePlan(4, (0, 2)), 4),
        (CachePlan(1, (0,)), 1),
    ],
)
def test_a_generation_that_cannot_pay_is_warned_of_when_it_begins(plan: Any, num_steps: int) -> None:
    with pytest.warns(DeepCacheWarning, match="so that nothing is cached|too far apart"):
        assert warn_if_it_cannot_pay(plan, num_steps)


@pytest.mark.parametrize(
    ("plan", "num_steps"),
    [(Interval(2), 5), (Interval(3), None), (Interval(1), 2), (CachePlan(3, (0, 1, 2)), 3), (uniform(50, 3), 50)],
)
def test_a_generation_that_can_pay_or_caches_nothing_on_purpose_begins_in_silence(plan: Any, num_steps: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_it_cannot_pay(plan, num_steps)


def test_block_warns_once_of_generations_too_short_to_pay() -> None:
    pipe = pipeline()
    with warnings.catch_warnings(record=True) as caught, cached(pipe, interval=2):
        warnings.simplefilter("always")
        for _ in range(2):
            latents(pipe, num_steps=4)
    found = [str(warning.message) for warning in caught if warning.category is DeepCacheWarning]
    assert len(found) == 1
    assert "too far apart to share a feature" in found[0]


def test_block_explains_its_plan_before_and_after_a_generation() -> None:
    pipe = stable()
    with cached(pipe, interval=3, branch=1, order=1) as cache:
        before = cache.explain(7)
        generate(pipe, 7)
        after = cache.explain(7)
    assert str(after) == str(before)
    assert "order 1 keeps 2" in str(before)
    assert after.plan.full_steps == cache.generations[0].full_steps
