"""All image metrics of a set of samples, as one flat dictionary of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcache.metrics.distances import Manifold, frechet_distance, psnr
from deepcache.metrics.extractors import Features, Images
from deepcache.metrics.moments import moments
from deepcache.metrics.reference import Reference
from deepcache.metrics.statistics import Statistics

Errors = NDArray[np.float64]
TIPPED_BELOW_DB = 20.0  # two garments of one kind are some 7 dB apart; a changed outline or pattern is below 20
_BATCH = 250
PSNR_AT_MOST_DB = 80.0  # beyond it rounding is compared


def quality(samples: Statistics, reference: Reference) -> dict[str, float]:
    """Against real images: `fid`, `sfid` (lower is better), `is` (higher), `precision` and `recall` in percent.

    What the reference has no part for is left out.
    """
    assert samples.pooled is not None
    assert samples.spatial is not None
    found = {}
    if reference.pooled is not None:
        found["fid"] = frechet_distance(samples.pooled.moments(), reference.pooled)
    if reference.spatial is not None:
        found["sfid"] = frechet_distance(samples.spatial.moments(), reference.spatial)
    found["is"] = samples.inception_score
    if reference.manifold is not None and reference.features is not None:
        found["precision"] = 100 * reference.manifold.share_within(samples.features)
        found["recall"] = 100 * Manifold.of(samples.features, device=reference.device).share_within(reference.features)
    return found


def as_asked(samples: Features, labels: Sequence[int]) -> float:
    """Share of samples whose most probable class is the one asked for, 0..1."""
    return float((samples.probabilities.argmax(axis=1) == np.asarray(labels)).mean())


def drift(cached: Features, uncached: Features, errors: Errors) -> dict[str, float]:
    """Of cached against uncached samples of the same seeds.

    `fid_drift`, the Fréchet distance between the two sets; `mse` and `psnr_db` of the mean squared error over
    all images (in 0..1); `psnr_median_db`, the median over the seeds; `tipped`, the share of seeds in percent that
    came out as another image: below `TIPPED_BELOW_DB`; `psnr_untipped_db`, of the mean error over the other seeds,
    where there are any. A PSNR is at most `PSNR_AT_MOST_DB`.

    Args:
        cached, uncached: features of the images.
        errors: what `squared_errors` says of these.
    """
    features = {"fid_drift": frechet_distance(moments(cached.pooled), moments(uncached.pooled))}
    return features | _drift(errors)


def drift_of_images(cached_images: Images, uncached_images: Images) -> dict[str, float]:
    """What `drift` says of the images alone."""
    return _drift(squared_errors(cached_images, uncached_images))


def squared_errors(images: Images, uncached_images: Images) -> Errors:
    """The mean squared error of each image, (B,)."""
    pairs = zip(images.split(_BATCH), uncached_images.split(_BATCH), strict=True)
    return np.concatenate([(a.double() - b.double()).square().flatten(1).mean(dim=1).numpy() for a, b in pairs])


def psnr_each(images: Images, uncached_images: Images) -> list[float]:
    """PSNR of each image in dB, at most `PSNR_AT_MOST_DB`."""
    return psnr_of(squared_errors(images, uncached_images))


def psnr_of(errors: Errors) -> list[float]:
    """`psnr_each` of images with these errors."""
    return [_psnr(mse) for mse in errors]


def tipped(errors: Errors) -> NDArray[np.bool_]:
    """Which images came out as another one, (B,): those whose PSNR is below `TIPPED_BELOW_DB`."""
    return np.asarray(errors > 10 ** (-TIPPED_BELOW_DB / 10))


def _drift(errors: Errors) -> dict[str, float]:
    is_tipped = tipped(errors)
    found = {
        "mse": float(errors.mean()),
        "psnr_db": _psnr(errors.mean()),
        "psnr_median_db": _psnr(np.median(errors)),
        "tipped": 100 * float(is_tipped.mean()),
    }
    return found if is_tipped.all() else found | {"psnr_untipped_db": _psnr(errors[~is_tipped].mean())}


def _psnr(mse: float) -> float:
    return min(psnr(float(mse)), PSNR_AT_MOST_DB)
