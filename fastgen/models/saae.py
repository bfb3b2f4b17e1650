"""Stylized adversarial autoencoders: a glyph and an example picture in, the glyph in its style out.

``G(c, s) = Dec([Enc_c(c); map(FC(Enc_s(s)))])`` after Zhao, Deng, Huang, Lu, Hua, "Stylized
Adversarial AutoEncoder for Image Generation", ACM Multimedia 2017. What the paper states and this
file follows: two encoders of three convolutions without downsampling, the style encoder followed
by a fully connected layer and brought back to a map of the content map's size, both concatenated
half and half, a decoder of three convolutions, batch norm on the convolutions, LeakyReLU
everywhere but the last layer, which is a sigmoid. **Our reconstruction**, as the paper gives no
numbers: every width, kernel size, slope and length of the style vector, the size of the images,
that the last convolution has no batch norm, and the second fully connected layer that makes the
map from the style vector (one layer from map to map would have 10^8 weights and more).

All take ``content`` (N,C,H,W) and ``style`` (N,C',H',W'), both in 0..1, and give ``image`` in
0..1 of the content's height and width. The sizes are fixed, as fully connected layers need.
``style`` is declared constant: what depends on it alone can be computed once for many contents.
"""

from __future__ import annotations

from fastgen.graph import Dim, Graph, Input, Node
from fastgen.models import register

__all__ = ["saae_characters", "saae_faces", "saae_mnist", "saae_net", "saae_plates"]

SLOPE = 0.2  # of LeakyReLU


def _check(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {value!r}, must be an integer in {low}..{high}")


class _Builder:
    """Collects nodes; every method returns the name of the value that it appended."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, name: str, op: str, *inputs: str, **attrs: object) -> str:
        self.nodes.append(Node(name, op, inputs, attrs))
        return name

    def relu(self, name: str, x: str) -> str:
        return self.add(f"{name}_relu", "activation", x, kind="leaky_relu", slope=SLOPE)

    def conv(self, name: str, x: str, channels: int, bias: bool = False) -> str:
        return self.add(name, "conv", x, out_channels=channels, kernel=3, padding=1, bias=bias)

    def block(self, name: str, x: str, channels: int) -> str:
        """Convolution, batch norm (whose shift makes a bias superfluous), LeakyReLU."""
        x = self.conv(name, x, channels)
        return self.relu(name, self.add(f"{name}_norm", "norm", x, kind="batch"))


def saae_net(
    name: str,
    content: tuple[int, int, int],
    style: tuple[int, int, int],
    channels: int,
    width: int,
    style_features: int = 64,
    style_maps: int = 0,
    style_map: str = "full",
) -> Graph:
    """The generator for any sizes; the registered configurations call it.

    Args:
        name: the graph's name.
        content: (channels, height, width) of the content image, the glyph.
        style: (channels, height, width) of the style image, which may differ from the content's.
        channels: of the output, 1 or 3; its height and width are the content's.
        width: channels of each encoder's first convolution, 1..256; twice that afterwards, so the
            decoder reads ``4*width``, half of them content and half style.
        style_features: length of the style vector, 1..4096; with ``style_map="tile"`` it is
            always ``2*width``.
        style_maps: channels of the style encoder's last convolution, 0 for ``2*width``; fewer
            keep the first fully connected layer small for large style images.
        style_map: ``"full"``: a second fully connected layer makes a whole map of the style vector
            (the paper's); ``"tile"``: the vector is repeated at every position (far fewer weights).

    Returns:
        Graph with the inputs ``content`` and ``style`` and the output ``image``. Its values
        ``content3_relu`` (the content map) and ``style_code_relu`` (the style vector) are all that
        the decoder depends on.

    Raises:
        ValueError: an argument outside its limits.
    """
    for what, shape in (("content", content), ("style", style)):
        _check(f"{what} channels", shape[0], 1, 64)
        _check(f"{what} height", shape[1], 1, 512)
        _check(f"{what} width", shape[2], 1, 512)
    _check("channels", channels, 1, 64)
    _check("width", width, 1, 256)
    _check("style_features", style_features, 1, 4096)
    _check("style_maps", style_maps, 0, 1024)
    if style_map not in ("full", "tile"):
        raise ValueError(f"style_map is {style_map!r}, must be 'full' or 'tile'")
    _, height, columns = content
    b = _Builder()
    x, s = "content", "style"
    for i, (out, maps) in enumerate(
        ((width, width), (2 * width, 2 * width), (2 * width, style_maps or 2 * width)), start=1
    ):
        x = b.block(f"content{i}", x, out)
        s = b.block(f"style{i}", s, maps)
    code = 2 * width if style_map == "tile" else style_features
    s = b.add("style_flat", "reshape", s, shape=[-1])
    s = b.relu("style_code", b.add("style_code", "linear", s, out_features=code))
    if style_map == "tile":
        s = b.add("style_map", "broadcast", s, x)
    else:
        size = 2 * width * height * columns
        s = b.relu("style_map", b.add("style_map", "linear", s, out_features=size))
        s = b.add("style_image", "reshape", s, shape=[2 * width, height, columns])
    x = b.add("joined", "concat", x, s)
    x = b.block("dec1", x, 2 * width)
    x = b.block("dec2", x, width)
    x = b.add("image", "activation", b.conv("dec3", x, channels, bias=True), kind="sigmoid")
    inputs = (
        Input("content", (Dim("N"), *content)),
        Input("style", (Dim("N"), *style), constant=True),
    )
    return Graph(name, inputs, tuple(b.nodes), {"image": x})


@register
def saae_mnist(width: int = 16, style_features: int = 64, style_map: str = "full") -> Graph:
    """Grey 28x28: handwritten digits; content and style are grey 28x28 pictures, too.

    Args:
        width: see :func:`saae_net`. With the defaults 3.3 million weights.
        style_features: length of the style vector.
        style_map: ``"full"`` or ``"tile"``.
    """
    shape = (1, 28, 28)
    return saae_net("saae_mnist", shape, shape, 1, width, style_features, 0, style_map)


@register
def saae_characters(width: int = 16, style_features: int = 64, style_map: str = "full") -> Graph:
    """Characters of scene text: a grey 32x32 glyph, a whole word 96x32 in colour, 32x32 colour out.

    Args:
        width: see :func:`saae_net`. With the defaults 3.7 million weights.
        style_features: length of the style vector.
        style_map: ``"full"`` or ``"tile"``.
    """
    return saae_net(
        "saae_characters", (1, 32, 32), (3, 32, 96), 3, width, style_features, 8, style_map
    )


@register
def saae_plates(width: int = 16, style_features: int = 64, style_map: str = "full") -> Graph:
    """Characters of licence plates: a grey 16x24 glyph, a whole plate 96x24, 16x24 colour out.

    Args:
        width: see :func:`saae_net`. With the defaults 2.0 million weights.
        style_features: length of the style vector.
        style_map: ``"full"`` or ``"tile"``.
    """
    return saae_net("saae_plates", (1, 24, 16), (3, 24, 96), 3, width, style_features, 8, style_map)


@register
def saae_faces(width: int = 16, style_features: int = 64, style_map: str = "tile") -> Graph:
    """Faces 64x64 in colour: the content is the face, the style an example of the attribute.

    Args:
        width: see :func:`saae_net`. With the defaults 1.1 million weights.
        style_features: length of the style vector, for ``style_map="full"``.
        style_map: ``"tile"``, as an attribute has no place in the picture, or ``"full"``.
    """
    shape = (3, 64, 64)
    return saae_net("saae_faces", shape, shape, 3, width, style_features, 8, style_map)
