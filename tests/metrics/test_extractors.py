"""Inception's features on random weights of the real layout: torch-fidelity's, and by hand (independent)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d

from deepcache.errors import DeepCacheError
from deepcache.metrics.extractors import Inception, load_inception
from deepcache.metrics.registry import INCEPTION_FILE, in_torch_cache

torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the file that torch-fidelity would download."""
    path = tmp_path_factory.mktemp("hub") / INCEPTION_FILE
    empty = torch_fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        network = empty("random", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> Inception:
    return load_inception(weights)


IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def test_pooled_features_and_logits_are_torch_fidelitys(extractor):
    found = extractor(IMAGES)
    pooled, logits = extractor.network((IMAGES * 255).round().to(torch.uint8))
    np.testing.assert_array_equal(found.pooled, pooled.numpy())
    np.testing.assert_array_equal(found.probabilities, logits.softmax(dim=1).numpy())
    assert found.pooled.shape == (2, 2048)
    assert found.probabilities.shape == (2, 1008)


def test_spatial_features_are_the_1x1_branch_of_the_fifth_mixed_block_pixel_by_pixel(extractor):
    """By hand from the block's input: convolution, norm, ReLU, seven channels, channels last."""
    entered: list[torch.Tensor] = []
    network = extractor.network
    handle = network.Mixed_6d.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    found = extractor(IMAGES).spatial.reshape(2, 17, 17, 7)
    handle.remove()
    branch = network.Mixed_6d.branch1x1
    hidden = conv2d(entered[0], branch.conv.weight)
    norm = branch.bn
    hidden = batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()
    expected = hidden[:, :7].movedim(1, -1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.std() > 0
    assert not np.allclose(found.reshape(2, -1), hidden[:, :7].flatten(1).numpy())  # channels first would differ


def test_convolutions_are_not_rounded_to_tf32_and_the_setting_is_kept(extractor):
    """The setting alone is looked at, by which a GPU goes."""
    inside: list[str] = []
    conv, network = torch.backends.cudnn.conv, extractor.network  # type: ignore[attr-defined]
    before = conv.fp32_precision
    handle = network.Mixed_6d.register_forward_hook(lambda *_: inside.append(conv.fp32_precision))
    extractor(IMAGES)
    handle.remove()
    assert inside == ["ieee"]
    assert conv.fp32_precision == before != "ieee"
    assert torch.backends.cudnn.allow_tf32  # its default, by the older name


def test_missing_weights_are_one_line_that_says_where_from(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DeepCacheError, match=r"expected Inception's weights in .*get them from https://") as caught:
        load_inception()
    assert "\n" not in str(caught.value)


def test_weights_are_found_in_the_hubs_cache(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    in_torch_cache(INCEPTION_FILE).symlink_to(weights)
    assert load_inception().name == "Inception"


def test_weights_that_carry_code_or_do_not_fit_are_refused(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (Path.touch, (trace,))

    torch.save({"fc.weight": Code()}, path)
    with pytest.raises(DeepCacheError, match="of which nothing ran"):
        load_inception(path)
    assert not trace.exists()
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(DeepCacheError, match="do not fit"):
        load_inception(path)
