"""Ways to keep a U-Net's weights: offloaded, cast or quantised, by the packages that do so, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import torch
from torch import nn

CPU = torch.device("cpu")
BLOCKS = "group offloading, block_level"


def _offloaded(kind: str, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: model.enable_group_offload(CPU, CPU, offload_type=kind, **options)


def _cast(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def _dynamic(model: nn.Module) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


STORAGE: dict[str, Callable[[nn.Module], Any]] = {
    "model CPU offload": lambda model: accelerate.cpu_offload_with_hook(model, CPU),
    "sequential CPU offload": lambda model: accelerate.cpu_offload(model, CPU),
    "group offloading, leaf_level": _offloaded("leaf_level"),
    BLOCKS: _offloaded("block_level", num_blocks_per_group=1),
    "layerwise casting": _cast,
    "torch's dynamic int8": _dynamic,
}


def _torchao(model: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def _torchao_dynamic(model: nn.Module) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def _quanto(model: nn.Module) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


def _gguf(model: nn.Module) -> None:
    """As diffusers loads a `.gguf` file: the weights of linear layers are blocks of 32 in Q8_0."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, child in places:
        if isinstance(child, nn.Linear) and child.in_features % 32 == 0:
            new = GGUFLinear(child.in_features, child.out_features, child.bias is not None, compute_dtype=torch.float32)
            blocks = torch.from_numpy(gguf.quantize(child.weight.numpy(force=True), kind))
            new.weight = GGUFParameter(blocks, quant_type=kind)
            new.bias = child.bias
            setattr(parent, name, new)


QUANTISED: dict[tuple[str, str], Callable[[nn.Module], Any]] = {  # by package, which need not be installed
    ("torchao", "int8 weights"): _torchao,
    ("torchao", "int8 weights and activations"): _torchao_dynamic,
    ("optimum.quanto", "int8 weights"): _quanto,
    ("gguf", "Q8_0"): _gguf,
}
