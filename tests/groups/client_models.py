"""Small models of the families that recipes are written for, from timm, with random weights."""

import functools
from typing import Any

import pytest
import torch


def import_timm() -> Any:
    """timm, or a skipped test."""
    pytest.importorskip("timm.optim")
    return pytest.importorskip("timm")


def resnet() -> torch.nn.Module:
    return import_timm().models.resnet.ResNet(
        import_timm().models.resnet.BasicBlock, layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), num_classes=3, stem_width=4
    )


def mobilenet() -> torch.nn.Module:
    return import_timm().create_model("mobilenetv2_035", num_classes=3)


def swin() -> torch.nn.Module:
    return import_timm().models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=3
    )


def vit() -> torch.nn.Module:
    return import_timm().models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=3, class_token=True
    )


MODELS = {"resnet": resnet, "mobilenet": mobilenet, "swin": swin, "vit": vit}


@functools.cache
def cached(name: str) -> torch.nn.Module:
    """A model that no test changes."""
    torch.manual_seed(0)
    return MODELS[name]()


def values_by_name(model: torch.nn.Module, groups: Any) -> dict[str, dict[str, float]]:
    """Learning rate, times timm's `lr_scale`, and decay per parameter of a plain torch optimizer's groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: {
            "lr": group["lr"] * group.get("lr_scale", 1.0),
            "weight_decay": group["weight_decay"],
        }
        for group in groups
        for p in group["params"]
    }
