"""Networks that the stylized adversarial autoencoder and its baselines need only for training.

The discriminator's structure is the paper's (Zhao et al. 2017): three convolutions, a 2x2 max-pool
after the first, two fully connected layers, k+1 outputs; batch norm on the convolutions and
LeakyReLU. Widths, kernels and the networks of the baselines are **our reconstruction**.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.graph import Dim, Graph, Input, Node

__all__ = [
    "BinaryDiscriminator",
    "CodeDiscriminator",
    "ConditionalDiscriminator",
    "MultiClassDiscriminator",
    "decoder_graph",
    "encoder_graph",
]

SLOPE = 0.2


class _Discriminator(nn.Module):
    """3 convolutions, max-pool after the first, 2 fully connected layers, logits."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, width: int) -> None:
        super().__init__()
        channels, height, columns = shape
        if height < 2 or columns < 2:
            raise ValueError(f"images are {columns}x{height}, a discriminator needs 2x2 at least")
        self.features = nn.Sequential(
            *_block(channels, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            *_block(2 * width, 4 * width),
            nn.Flatten(),
        )
        flat = 4 * width * (height // 2) * (columns // 2)
        self.head = nn.Sequential(
            nn.Linear(flat, 8 * width), nn.LeakyReLU(SLOPE), nn.Linear(8 * width, outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, outputs) of images (N,C,H,W) in 0..1."""
        return self.head(self.features(images))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE),
    ]


class MultiClassDiscriminator(_Discriminator):
    """Which of k real classes an image is, or fake: k+1 logits, the last one is fake.

    Args:
        shape: (channels, height, width) of the images.
        classes: k, at least 1.
        width: channels of the first convolution; twice and four times that afterwards.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 16) -> None:
        super().__init__(shape, classes + 1, width)


class BinaryDiscriminator(_Discriminator):
    """Real or fake: one logit of real. All else is as in :class:`MultiClassDiscriminator`."""

    def __init__(self, shape: tuple[int, int, int], width: int = 16) -> None:
        super().__init__(shape, 1, width)


class ConditionalDiscriminator(_Discriminator):
    """Real or fake given the class, which comes as k constant maps beside the image.

    Source: Mirza, Osindero, "Conditional Generative Adversarial Nets", 2014.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 16) -> None:
        super().__init__((shape[0] + classes, *shape[1:]), 1, width)
        self.classes = classes

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logit (N,1) of real, for images (N,C,H,W) and labels (N,)."""
        if labels is None:
            raise ValueError("a conditional discriminator needs labels")
        maps = nn.functional.one_hot(labels, self.classes).to(images.dtype)[:, :, None, None]
        joined = torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], 1)
        return super().forward(joined)


class CodeDiscriminator(nn.Module):
    """Prior or encoder: one logit of a code (N,Z), for the adversarial autoencoder.

    Source: Makhzani et al., "Adversarial Autoencoders", 2015.
    """

    def __init__(self, size: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, 1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (N,1) of codes (N,Z)."""
        return self.layers(codes)


def decoder_graph(shape: tuple[int, int, int], latent: int, width: int = 16) -> Graph:
    """DCGAN's generator: a vector ``latent`` (N,Z) to ``image`` (N,C,H,W) in 0..1.

    Source: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks", 2015, for images of these sizes: a fully connected layer,
    two transposed convolutions of stride 2 with batch norm and ReLU.

    Args:
        shape: (channels, height, width); both sides must be multiples of 4.
        latent: Z.
        width: channels at half the resolution; four times that at a quarter.
    """
    channels, height, columns = shape
    if height % 4 or columns % 4:
        raise ValueError(f"images are {columns}x{height}, this model needs multiples of 4")
    start = [4 * width, height // 4, columns // 4]
    up = {"kernel": 4, "stride": 2, "padding": 1}
    nodes = (
        Node("fc", "linear", ("latent",), {"out_features": start[0] * start[1] * start[2]}),
        Node("start", "reshape", ("fc",), {"shape": start}),
        Node("start_norm", "norm", ("start",), {"kind": "batch"}),
        Node("start_relu", "activation", ("start_norm",), {"kind": "relu"}),
        Node("up1", "conv_transpose", ("start_relu",), {"out_channels": 2 * width, **up}),
        Node("up1_norm", "norm", ("up1",), {"kind": "batch"}),
        Node("up1_relu", "activation", ("up1_norm",), {"kind": "relu"}),
        Node("up2", "conv_transpose", ("up1_relu",), {"out_channels": channels, **up}),
        Node("image", "activation", ("up2",), {"kind": "sigmoid"}),
    )
    return Graph(
        "dcgan_generator", (Input("latent", (Dim("N"), latent)),), nodes, {"image": "image"}
    )


def encoder_graph(shape: tuple[int, int, int], latent: int, width: int = 16) -> Graph:
    """The mirror image of :func:`decoder_graph`: ``image`` (N,C,H,W) to ``code`` (N,Z)."""
    channels, height, columns = shape
    down = {"kernel": 4, "stride": 2, "padding": 1}
    nodes = (
        Node("down1", "conv", ("image",), {"out_channels": 2 * width, **down}),
        Node("down1_relu", "activation", ("down1",), {"kind": "leaky_relu", "slope": SLOPE}),
        Node("down2", "conv", ("down1_relu",), {"out_channels": 4 * width, **down}),
        Node("down2_norm", "norm", ("down2",), {"kind": "batch"}),
        Node("down2_relu", "activation", ("down2_norm",), {"kind": "leaky_relu", "slope": SLOPE}),
        Node("flat", "reshape", ("down2_relu",), {"shape": [-1]}),
        Node("code", "linear", ("flat",), {"out_features": latent}),
    )
    image = Input("image", (Dim("N"), channels, height, columns))
    return Graph("image_encoder", (image,), nodes, {"code": "code"})
