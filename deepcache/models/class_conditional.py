"""A pipeline for class-conditional latent diffusion, as LDM-4-G and the embedded mini-ldm need it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, UNet2DConditionModel, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from deepcache.errors import DeepCacheError
from deepcache.unets.calls import sides

_QUANTISED = 8  # samples that are quantised together; their distances to all codes are held in memory


class ClassEmbedder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A table with one context token for each class, and a last one for no class."""

    @register_to_config
    def __init__(self, num_classes: int = 10, embedding_dim: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, embedding_dim)

    def forward(self, class_labels: Tensor) -> Tensor:
        """Map class numbers (B,), int64 in 0..num_classes, to context (B, 1, embedding_dim)."""
        return self.embedding(class_labels)[:, None]  # type: ignore[no-any-return]


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Sample images of given classes, with classifier-free guidance in the latent space of a VQ autoencoder.

    References: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), arXiv:2112.10752
    """

    model_cpu_offload_seq = "class_embedder->unet->vqvae"

    def __init__(
        self, vqvae: VQModel, unet: UNet2DConditionModel, class_embedder: ClassEmbedder, scheduler: Any
    ) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, unet=unet, class_embedder=class_embedder, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @property
    def guidance_scale(self) -> float:
        """The scale of guidance of the call under way, as diffusers' pipelines tell it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """True where the call under way has guidance."""
        return self._guidance_scale != 1.0

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each label.

        Args:
            class_labels: B integers in 0 .. num_classes - 1; others are a `DeepCacheError`.
            num_inference_steps: steps of the scheduler; most schedulers call the U-Net once a step.
            guidance_scale: 1 is no guidance; otherwise every step runs the U-Net with and without the class.
            generator: one generator, or a list of B generators so that every image depends on its own alone.
            latents: (B, C, H, W) start noise; None to draw the noise.
            eta: the scheduler's `eta`, where it has one, such as DDIM's.
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W) in 0..1, or "latent" (B, C, H, W).
        """
        num_classes = self.class_embedder.config.num_classes
        if len(class_labels) == 0 or not all(0 <= label < num_classes for label in class_labels):
            raise DeepCacheError(f"expected class labels in 0..{num_classes - 1}, got {list(class_labels)}")
        self._guidance_scale = guidance_scale
        device, guided = self._execution_device, self.do_classifier_free_guidance
        nothing = [num_classes] * len(class_labels) if guided else []
        context = self.class_embedder(torch.tensor([*nothing, *class_labels], device=device))
        shape = (len(class_labels), self.unet.config.in_channels, *sides(self.unet.config.sample_size))
        if latents is None:
            latents = randn_tensor(shape, generator, device, self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
        for t in self.progress_bar(self.scheduler.timesteps):
            doubled = torch.cat([latents] * 2) if guided else latents
            noise = self.unet(self.scheduler.scale_model_input(doubled, t), t, context).sample
            if guided:
                without, conditional = noise.chunk(2)
                noise = without + guidance_scale * (conditional - without)
            latents = self.scheduler.step(noise, t, latents, **extra).prev_sample
        if output_type != "latent":
            latents = self.image_processor.postprocess(self.decode_latents(latents), output_type=output_type)
        return ImagePipelineOutput(latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, H, W) to images in -1..1, through the codebook, with distances to codes in float32."""
        latents = latents / self.vqvae.config.scaling_factor
        if latents.dtype == torch.float32:
            return self.vqvae.decode(latents).sample  # type: ignore[no-any-return]
        exact = deepcopy(self.vqvae.quantize).float()
        latents = torch.cat([exact(each.float())[0] for each in latents.split(_QUANTISED)]).to(latents.dtype)
        return self.vqvae.decode(latents, force_not_quantize=True).sample  # type: ignore[no-any-return]
