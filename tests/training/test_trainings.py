"""The trainings of the embedded models learn and can be resumed, and what they export loads again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from bench.training import fashion, mini_bk, mini_clip, mini_ddpm, mini_features, mini_ldm, mini_sd, trainer
from bench.training.tokens import LENGTH, tokenizer
from deepcache.errors import DeepCacheError
from deepcache.metrics.clip_score import load_clip
from deepcache.models import captions, load
from deepcache.unets.diffusers.stages import nest
from tests.training import untrained


@dataclass(frozen=True)
class Constant(trainer.Recipe):
    """A learning rate that does not depend on the length, so that a short training is the beginning of a longer one."""

    lr: float = 1e-3

    def lr_at(self, step: int) -> float:  # noqa: ARG002
        return self.lr


def autoencoder_training(folder: Path) -> nn.Module:
    return mini_sd.train_autoencoder(untrained.garments(), untrained.vqvae(), folder)


def text_to_image_training(folder: Path) -> nn.Module:
    return mini_sd.train_text_to_image(captioned(folder), folder)


def pruned_training(folder: Path) -> nn.Module:
    return mini_bk.train_pruned("base", untrained.denoiser(), captioned(folder), folder)


def class_conditional_training(folder: Path) -> nn.Module:
    return mini_ldm.train_denoiser(untrained.garments(), untrained.vqvae(), folder)


def classifier_training(folder: Path) -> nn.Module:
    return mini_features.train_classifier(untrained.garments(), untrained.vqvae(), folder)


def captioned(folder: Path) -> mini_sd.Captioned:
    return mini_sd.Captioned(untrained.garments(), untrained.vae(), folder)


@dataclass(frozen=True)
class Training:
    """`run` trains in a folder; `module` holds the training, `recipe` and `batch` are the names of its constants."""

    run: Callable[[Path], nn.Module]
    module: Any
    recipe: str = "RECIPE"
    batch: tuple[Any, str] | None = None


TRAININGS = {
    "autoencoder": Training(autoencoder_training, mini_sd, "AUTOENCODER", (mini_sd, "AUTOENCODER_BATCH")),
    "text to image": Training(text_to_image_training, mini_sd),
    "pruned": Training(pruned_training, mini_bk, batch=(mini_sd, "BATCH")),
    "pixels": Training(lambda folder: mini_ddpm.train_pixels(untrained.garments(), folder), mini_ddpm),
    "contrastive": Training(lambda folder: mini_clip.train_contrastive(untrained.garments(), folder), mini_clip),
    "class-conditional": Training(class_conditional_training, mini_ldm),
    "classifier": Training(classifier_training, mini_features),
}


@pytest.fixture(params=TRAININGS)
def training(request, monkeypatch):
    """A training with batches of four."""
    found = TRAININGS[request.param]
    monkeypatch.setattr(*(found.batch or (found.module, "BATCH")), 4)
    return found


def trained(training: Training, folder: Path, monkeypatch, recipe: trainer.Recipe) -> nn.Module:
    monkeypatch.setattr(training.module, training.recipe, recipe)
    return training.run(folder)


def begun(training: Training, folder: Path, monkeypatch) -> tuple[nn.Module, Callable[[nn.Module, int], Tensor]]:
    """The network and the loss of a training before its first step."""
    found: list[Any] = []

    def caught(module: nn.Module, loss: Any, _recipe: object, _folder: Path) -> nn.Module:
        found.extend((module, loss))
        return module

    with monkeypatch.context() as patched:
        patched.setattr(training.module, "train", caught)
        training.run(folder)
    module, loss = found
    return module, loss


def begun_twice(training: Training, folder: Path, monkeypatch) -> list[tuple[nn.Module, Tensor]]:
    """The network before its first step and its loss at step 1, under two states of the global generator."""
    found = []
    for seed in (0, 7):
        torch.manual_seed(seed)  # another process has another state
        module, loss = begun(training, folder, monkeypatch)
        with torch.no_grad():
            found.append((module, loss(module, 1)))
    return found


def test_a_training_begins_alike_and_its_loss_depends_on_the_step_alone(training, tmp_path, monkeypatch):
    """With the loop's law (test_trainer), a training that was stopped goes on as if it had not been stopped."""
    first, again = begun_twice(training, tmp_path, monkeypatch)
    torch.testing.assert_close(again[0].state_dict(), first[0].state_dict(), rtol=0, atol=0)
    assert torch.equal(again[1], first[1])


def test_a_loss_that_draws_from_the_global_state_does_not_depend_on_the_step_alone(tmp_path, monkeypatch):
    """Test of the test."""
    draw = torch.randint

    def without_generator(*args: Any, generator: object = None, **kwargs: Any) -> Tensor:  # noqa: ARG001
        return draw(*args, **kwargs)

    monkeypatch.setattr(torch, "randint", without_generator)
    monkeypatch.setattr(mini_ddpm, "BATCH", 4)
    first, again = begun_twice(TRAININGS["pixels"], tmp_path, monkeypatch)
    assert not torch.equal(again[1], first[1])


def test_a_stopped_training_of_an_embedded_model_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(mini_ddpm, "BATCH", 4)
    training = TRAININGS["pixels"]
    whole = trained(training, tmp_path / "whole", monkeypatch, Constant(2))
    trained(training, tmp_path / "parts", monkeypatch, Constant(1))
    torch.manual_seed(7)
    parts = trained(training, tmp_path / "parts", monkeypatch, Constant(2))
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_loss_on_one_batch_goes_down(training, tmp_path, monkeypatch):
    module, loss = begun(training, tmp_path, monkeypatch)
    values: list[float] = []

    def first_batch(model: nn.Module, _step: int) -> Tensor:
        value = loss(model, 0)
        values.append(value.item())
        return value

    trainer.train(module, first_batch, trainer.Recipe(4, lr=3e-3, warmup=1), tmp_path / "fixed")
    assert 0 < values[-1] < 0.97 * values[0] < float("inf")


def test_a_training_leaves_the_global_state_as_it_was(training, tmp_path, monkeypatch):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    trained(training, tmp_path, monkeypatch, Constant(0))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_quantized_autoencoders_training_leaves_the_global_state_as_it_was(tmp_path, monkeypatch):
    for name in ("PLAIN", "QUANTIZED"):
        monkeypatch.setattr(mini_ldm, name, Constant(0))
    monkeypatch.setattr(mini_ldm, "codebook_from_latents", lambda *_: None)  # takes more garments than these
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    mini_ldm.train_autoencoder(untrained.garments(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_zero_for_the_network_that_knows_what_the_schedule_asks_for_and_for_no_other(kind):
    """Exact law on clean samples of zeros: noisy is sqrt(1 - a) x noise, the velocity sqrt(a) x noise."""
    schedule = DDIMScheduler(prediction_type=kind)
    knowing = {
        "epsilon": lambda noisy, a: noisy / (1 - a).sqrt(),
        "v_prediction": lambda noisy, a: noisy * (a / (1 - a)).sqrt(),
    }
    for answer, predicted in knowing.items():
        loss = trainer.diffusion_loss(
            lambda noisy, t, predicted=predicted: predicted(noisy, schedule.alphas_cumprod[t][:, None]),
            schedule,
            torch.zeros(64, 8),
            torch.Generator().manual_seed(0),
        ).item()
        assert loss < 1e-10 if answer == kind else loss > 0.1


def test_a_schedule_that_asks_for_something_else_is_refused():
    with pytest.raises(DeepCacheError, match="got 'sample'"):
        trainer.diffusion_loss(
            lambda noisy, _: noisy, DDIMScheduler(prediction_type="sample"), torch.zeros(2, 3), torch.Generator()
        )


def test_the_autoencoder_begins_as_the_one_it_comes_from():
    vqvae = untrained.vqvae()
    begun = mini_sd.continuous(vqvae).eval()
    painted = fashion.paint(untrained.garments(4), seed=0)
    with torch.no_grad():
        latents = vqvae.encode(painted.images).latents
        found = begun.encode(painted.images).latent_dist
        # the same convolutions on twice the channels: rounding
        torch.testing.assert_close(found.mean, latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.logvar, torch.full_like(latents, mini_sd.LOG_VARIANCE))
        expected = vqvae.decode(latents, force_not_quantize=True).sample
        torch.testing.assert_close(begun.decode(latents).sample, expected, rtol=1e-4, atol=1e-5)


def test_the_scaling_factor_gives_latents_of_unit_size(tmp_path, monkeypatch):
    monkeypatch.setattr(mini_sd, "AUTOENCODER_BATCH", 4)
    monkeypatch.setattr(mini_sd, "AUTOENCODER", Constant(1))
    model = autoencoder_training(tmp_path)
    latents = mini_sd.encode(model, fashion.paint(untrained.garments(), seed=0))
    assert (latents * model.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-4)


def test_latents_belong_to_their_captions(tmp_path):
    data, every = captioned(tmp_path), captions.subjects()
    painted = [fashion.paint(untrained.garments(), seed=2 + number) for number in range(mini_sd.PAINTINGS)]
    shown = [subject for some in painted for subject in fashion.subjects_of(some)]
    assert [every[number] for number in data.caption.tolist()] == shown
    expected = tokenizer()([str(subject) for subject in shown], padding="max_length").input_ids
    assert data.tokens[data.caption].tolist() == expected
    assert data.tokens.shape == (len(every) + 1, LENGTH)  # the last is the empty prompt
    latents = torch.cat([mini_sd.encode(untrained.vae(), some) for some in painted])
    scaled = latents.half().float() * untrained.vae().config.scaling_factor
    torch.testing.assert_close(data.latents, scaled, rtol=1e-2, atol=1e-3)  # stored in half precision


@pytest.mark.parametrize(("size", "skips"), [("base", 6), ("small", 6), ("tiny", 4)])
def test_a_pruned_network_keeps_the_weights_of_the_blocks_it_keeps(size, skips):
    full = untrained.denoiser().unet
    smaller = mini_bk.prune(full, size)
    assert nest(smaller).num_branches == skips
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in full.parameters())
    kept, found = full.state_dict(), smaller.state_dict()
    for name in ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_out.weight"):
        assert torch.equal(found[name], kept[name])
    gone = len(full.up_blocks) - len(smaller.up_blocks)
    last = "resnets.{}.conv2.weight"  # up blocks keep their first and their last
    for block in range(len(smaller.up_blocks)):
        up = smaller.up_blocks[block].state_dict(), full.up_blocks[block + gone].state_dict()
        assert torch.equal(up[0][last.format(0)], up[1][last.format(0)])
        assert torch.equal(up[0][last.format(1)], up[1][last.format(2)])


def test_pruned_training_leaves_the_text_encoder_and_the_full_network_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(mini_sd, "BATCH", 4)
    monkeypatch.setattr(mini_bk, "RECIPE", Constant(1))
    full = untrained.denoiser()
    before = {name: value.clone() for name, value in full.state_dict().items()}
    model = mini_bk.train_pruned("tiny", full, captioned(tmp_path), tmp_path)
    torch.testing.assert_close(full.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(model.text_encoder.state_dict(), full.text_encoder.state_dict(), rtol=0, atol=0)
    assert not torch.equal(model.unet.conv_in.weight, full.unet.conv_in.weight)


def prompted_images(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red dress on a blue background", generator=generator, num_inference_steps=1, output_type="pt").images


@pytest.mark.parametrize("name", ["mini-sd", "mini-bk-tiny"])
def test_an_exported_text_to_image_model_loads_with_the_same_output(name, tmp_path, monkeypatch):
    untrained.use(monkeypatch, tmp_path)
    vae, full = untrained.vae(), untrained.denoiser()
    mini_sd.export(vae, full, tmp_path / "mini-sd")
    unet = full.unet
    if name != "mini-sd":
        unet = mini_bk.prune(full.unet, name.removeprefix("mini-bk-"))
        mini_bk.export(unet, tmp_path / name)
    loaded = load(name)
    for part, original in {"vae": vae, "unet": unet, "text_encoder": full.text_encoder}.items():
        stored = {key: value.float() for key, value in original.state_dict().items()}  # export rounded them
        torch.testing.assert_close(getattr(loaded, part).state_dict(), stored, rtol=0, atol=0)
    pipe = type(loaded)(
        vae.float(),
        full.text_encoder.float(),
        tokenizer(),
        unet.float(),
        mini_sd.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    torch.testing.assert_close(prompted_images(loaded), prompted_images(pipe), rtol=0, atol=0)


def test_an_exported_pixel_model_loads_with_the_same_output(tmp_path, monkeypatch):
    untrained.use(monkeypatch, tmp_path)
    unet = mini_ddpm.build().eval()
    mini_ddpm.export(unet, tmp_path / "mini-ddpm")
    loaded = load("mini-ddpm")
    noisy, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        torch.testing.assert_close(loaded.unet(noisy, t).sample, unet.float()(noisy, t).sample, rtol=0, atol=0)
    assert loaded.scheduler.config.beta_schedule == mini_ddpm.scheduler().config.beta_schedule


def test_an_exported_clip_loads_with_the_same_output(tmp_path):
    torch.manual_seed(0)
    model = mini_clip.open_clip.CLIP(**mini_clip.config()).eval()
    mini_clip.export(model, tokenizer(), tmp_path / "mini-clip")
    loaded = load_clip(tmp_path / "mini-clip")
    painted = fashion.paint(untrained.garments(4), seed=0)
    texts = [str(subject) for subject in fashion.subjects_of(painted)]
    with torch.no_grad():
        model = model.half().float()  # as it is stored
        rounded = ((painted.images + 1) / 2 * 255).round() / 255  # as the loaded one takes them
        image = nn.functional.normalize(model.encode_image(rounded * 2 - 1), dim=-1)
        tokens = tokenizer()(texts, padding="max_length", return_tensors="pt").input_ids
        text = nn.functional.normalize(model.encode_text(tokens), dim=-1)
    # unit vectors through two orders of the same sums
    torch.testing.assert_close(loaded.image_features((painted.images + 1) / 2), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.text_features(texts), text, rtol=0, atol=1e-5)
