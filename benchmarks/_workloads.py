"""The shapes of the parameters of real models: what an optimizer sees of them, in the models' own order."""

import math
from collections.abc import Callable
from typing import NamedTuple

Shape = tuple[int, ...]


class Workload(NamedTuple):
    """A list of parameters."""

    name: str  # on the command line
    title: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    def only(self, wanted: Callable[[Shape], bool]) -> "Workload":
        """The parameters of some shapes."""
        return self._replace(shapes=tuple(filter(wanted, self.shapes)))


def tiny(tensors: int, elements: int = 1) -> Workload:
    """Parameters whose arithmetic is nothing: what is left is the price of a tensor."""
    return Workload(f"{tensors}x{elements}", f"{tensors:,} x {elements}", ((elements,),) * tensors)


def resnet50() -> tuple[Shape, ...]:
    """He et al. (2015), as torchvision has it: 53 convolutions with normalisation, and a head."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]
            channels = 4 * width
    return (*shapes, (1000, channels), (1000,))


def mobilenet_v2() -> tuple[Shape, ...]:
    """Sandler et al. (2018), as torchvision has it: most tensors are small."""
    convolutions: list[Shape] = [(32, 3, 3, 3)]
    channels = 32
    for expansion, width, blocks in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(blocks):
            hidden = expansion * channels
            expand = [(hidden, channels, 1, 1)] if expansion > 1 else []
            convolutions += [*expand, (hidden, 1, 3, 3), (width, hidden, 1, 1)]
            channels = width
    convolutions.append((1280, channels, 1, 1))
    normalised = [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
    return (*normalised, (1000, 1280), (1000,))


def vit_b16() -> tuple[Shape, ...]:
    """Dosovitskiy et al. (2020): images of 224 x 224 in patches of 16 x 16."""
    ends: tuple[Shape, ...] = ((768,), (768,), (1000, 768), (1000,))
    return ((1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,), *_transformer_block(768) * 12, *ends)


def gpt2_small() -> tuple[Shape, ...]:
    """Radford et al. (2019), with the head tied to the embedding."""
    return ((50257, 768), (1024, 768), *_transformer_block(768) * 12, (768,), (768,))


def llama_1b() -> tuple[Shape, ...]:
    """Like Llama 3.2 1B, with the head tied to the embedding: few tensors, and large ones."""
    width, hidden, keys = 2048, 8192, 512
    attention: tuple[Shape, ...] = ((width, width), (keys, width), (keys, width), (width, width))
    mlp: tuple[Shape, ...] = ((hidden, width), (hidden, width), (width, hidden))
    return ((128256, width), *(*attention, *mlp, (width,), (width,)) * 16, (width,))


def _transformer_block(width: int) -> tuple[Shape, ...]:
    norm: tuple[Shape, ...] = ((width,), (width,))
    attention: tuple[Shape, ...] = ((3 * width, width), (3 * width,), (width, width), (width,))
    mlp: tuple[Shape, ...] = ((4 * width, width), (4 * width,), (width, 4 * width), (width,))
    return (*norm, *attention, *norm, *mlp)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet50", "ResNet-50", resnet50()),
        Workload("gpt2-small", "GPT-2 small", gpt2_small()),
        Workload("vit-b16", "ViT-B/16", vit_b16()),
        Workload("mobilenet-v2", "MobileNetV2", mobilenet_v2()),
        Workload("llama-1b", "Llama-1B-like", llama_1b()),
        Workload("1000x32x32", "1,000 x 32x32", ((32, 32),) * 1000),
        Workload("gpt2-block", "one block of GPT-2 small", _transformer_block(768)),
    )
}
