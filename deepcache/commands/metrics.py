"""The command `metrics`: FID, sFID, IS, precision and recall of samples against real images, and their CLIP score."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.commands.options import add_device, new
from deepcache.errors import DeepCacheError
from deepcache.metrics.registry import METRICS

MINI, INCEPTION = "mini-features", "inception"


def add(commands: Any) -> None:
    text = "FID, sFID, IS, precision, recall of samples against real images"
    command = new(commands, "metrics", text, "samples --reference VIRTUAL_imagenet256_labeled.npz")
    add = command.add_argument
    add("samples", type=Path, help="a sample store, a folder of images, or an .npz with arr_0 (B, H, W, 3) of uint8")
    add("--reference", type=Path, metavar="REF", help="real images, or the .npz of the ADM suite or --save-statistics")
    add("--extractor", choices=(INCEPTION, MINI), default=INCEPTION, help=f"{MINI} is for the embedded models")
    add("--inception", type=Path, metavar="FILE", help="the weights of Inception (default: torch.hub's cache)")
    add("--prompts", type=Path, metavar="FILE", help="prompts, a line for each sample or seed; adds the CLIP score")
    add("--clip", default="ViT-g-14", metavar="NAME", help="the CLIP model: mini-clip, or ViT-g-14 (default)")
    add("--clip-weights", type=Path, metavar="FILE", help="the weights of the CLIP model (default: the hub's cache)")
    add("--num-features", type=int, metavar="N", help="images of each side for precision and recall (default: all)")
    add("--batch-size", type=int, default=100, help="how many images are measured at once (default 100)")
    add_device(command)
    add("--save-statistics", type=Path, metavar="FILE", help="write the samples' statistics, which --reference takes")
    add("--json", action="store_true", help="print the metrics as JSON")
    command.set_defaults(run=run, has_bar=True)


def run(options: Namespace) -> str:
    from tqdm import tqdm

    from deepcache.metrics import reference as references
    from deepcache.metrics.clip_score import clip_scores, load_clip
    from deepcache.metrics.extractors import Extractor, MiniExtractor, load_inception
    from deepcache.metrics.fidelity import quality
    from deepcache.metrics.images import Images, image_set
    from deepcache.metrics.statistics import Statistics, drawn
    from deepcache.models.loading import require_device, usual_device
    from deepcache.sampling.conditions import prompts_in
    from deepcache.sampling.store import StoredImages

    def gathered(images: Images, name: str = "reference") -> Statistics:
        """Gather the statistics of images under a progress bar with a name."""
        found = Statistics(drawn(len(images), options.num_features))
        with tqdm(total=len(images), desc=name, unit="image", disable=None, leave=False) as bar:
            for part in map(extractor, images.split(options.batch_size)):
                found.update(part)
                bar.update(len(part.pooled))
        return found

    is_mini, device = options.extractor == MINI, options.device or usual_device()
    if options.batch_size < 1 or (options.num_features is not None and options.num_features < 4):
        raise DeepCacheError(
            f"expected --batch-size >= 1 and --num-features >= 4, got {options.batch_size} and {options.num_features}"
        )
    if options.reference is None and options.save_statistics is None and not is_mini:
        raise DeepCacheError("expected --reference REF, real images or their statistics; or --save-statistics FILE")
    require_device(device)
    images = image_set(options.samples)
    lines = [] if options.prompts is None else prompts_in(options.prompts)
    clip = None if options.prompts is None else load_clip(options.clip, checkpoint=options.clip_weights, device=device)
    extractor: Extractor = MiniExtractor.load(device) if is_mini else load_inception(options.inception, device=device)
    found = gathered(images, "samples")
    if options.save_statistics is not None:
        references.save_npz(found, options.save_statistics)
    against = options.reference or (references.EMBEDDED if is_mini else None)
    real = references.Reference() if against is None else references.find(against, gathered)
    values = quality(found, real.on(device))
    if clip is not None:
        seeds = images.seeds if isinstance(images, StoredImages) else range(len(images))
        values["clip_score"] = float(clip_scores(clip, images, [lines[seed % len(lines)] for seed in seeds]).mean())
    return _shown(values, found.count, extractor.name, options, "" if against is None else str(against))


def _shown(values: dict[str, float], count: int, extractor: str, options: Namespace, against: str) -> str:
    """Return all metrics of quality as a page or as JSON, with a dash for what was not measured."""
    if options.json:
        return json.dumps({"samples": count, "extractor": extractor, **values}, indent=2)
    compared = f", against {options.reference or 'the embedded images'}" if against else ", compared with nothing"
    lines = [f"{count} samples of {options.samples}, {extractor}{compared}"]
    for key, metric in METRICS.items():
        if key in values or metric.inputs == "reference":
            value = f"{values[key]:.4f}" if key in values else "-"
            lines.append(f"{metric.title:<14} {value:>10}   {metric.direction}")
    if options.num_features is not None:
        lines.append(f"precision and recall: of at most {options.num_features} images a side, drawn with a fixed seed")
    return "\n".join(lines)
