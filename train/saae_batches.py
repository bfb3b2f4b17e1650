"""Batches, sample grids and models of an SAAE run, each a pure function of options and step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen import models
from fastgen.graph import Graph
from fastgen.train.saae_data import SaaeData, hold_out, load, per_class
from fastgen.train.saae_options import SaaeOptions
from fastgen.train.saae_systems import Autoencoder, Batch, Gan, Saae, System

__all__ = ["batch_at", "build_graph", "build_system", "data_of", "grid", "images_of", "parse_size"]

_MODELS = {
    "mnist": "saae_mnist",
    "iiit5k": "saae_characters",
    "plates": "saae_plates",
    "faces": "saae_faces",
}


def parse_size(what: str, text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` as (height, width).

    Raises:
        ValueError: anything else, or sides outside 8..512.
    """
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"{what} is {text!r}, must be WIDTHxHEIGHT such as 32x32")
    size = int(height), int(width)
    if not all(8 <= side <= 512 for side in size):
        raise ValueError(f"{what} is {text}, each side must be in 8..512")
    return size


def data_of(options: SaaeOptions) -> tuple[SaaeData, SaaeData]:
    """Training and validation data; of ``--per-class`` images a tenth, or the same if too few."""
    size = parse_size("--size", options.size)
    style_size = parse_size("--style-size", options.style_size) if options.style_size else size

    def part(name: str) -> SaaeData:
        return load(
            options.data,
            options.source,
            name,
            size=size,
            style_size=style_size,
            font=options.font,
            attribute=options.attribute,
            grey=options.grey,
        )

    train = part("train")
    if options.per_class is None:
        return train, part("validation")
    # Nothing but the chosen images may be looked at.
    chosen = per_class(train, options.per_class, options.data_seed)
    return chosen, hold_out(chosen, 0.1, options.seed)[1]


def build_graph(options: SaaeOptions, data: SaaeData) -> Graph:
    """The SAAE's graph for a data set."""
    config: dict[str, object] = {
        "width": options.width,
        "style_features": options.style_features,
    }
    if options.style_map is not None:
        config["style_map"] = options.style_map
    if options.data in _MODELS:
        return models.create(_MODELS[options.data], **config)
    from fastgen.models.saae import saae_net

    content = data.contents.shape[1:]
    style = data.styles.shape[1:]
    return saae_net(
        "saae_folder",
        (content[0], content[1], content[2]),
        (style[0], style[1], style[2]),
        data.images.shape[1],
        style_maps=8 if style[1] * style[2] > 1024 else 0,
        **config,  # type: ignore[arg-type]
    )


def build_system(options: SaaeOptions, data: SaaeData) -> System:
    """The networks to train."""
    channels, height, width = data.images.shape[1:]
    shape, classes = (channels, height, width), len(data.classes)
    latent = options.style_features
    if options.model == "saae":
        graph = build_graph(options, data)
        return Saae(graph, classes, options.discriminator, options.form, options.d_width)
    if options.model in ("dcgan", "cgan"):
        return Gan(shape, classes, latent, options.d_width, options.model == "cgan")
    return Autoencoder(shape, latent, options.width, options.model == "aae")


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


def images_of(array: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 (N,C,H,W) to float32 0..1 on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device).float() / 255


def batch_at(
    data: SaaeData,
    step: int,
    count: int,
    latent: int,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
) -> Batch:
    """The batch of one update: every image once in a random order, then the next order.

    Args:
        data: what to draw from.
        step: number of the update, from 0.
        count: images for each process.
        latent: length of the noise.
        seed: of the run.
        device: where the tensors go.
        rank: this process.
        world: number of processes.
    """
    first = (step * world + rank) * count
    epochs, places = np.divmod(np.arange(first, first + count), len(data))
    chosen = np.array(
        [_order(len(data), seed, int(e))[p] for e, p in zip(epochs, places, strict=True)]
    )
    rng = np.random.default_rng([seed, 2, step, rank])
    labels = data.labels[chosen]
    others = rng.integers(0, len(data.contents), count)
    if data.glyphs:
        # Every class equally often, whatever number of glyphs it has.
        wanted = rng.integers(0, len(data.classes), count)
        others = np.array([rng.choice(np.flatnonzero(data.content_class == c)) for c in wanted])
    other_labels = data.content_class[others] if data.glyphs else labels
    noise = rng.standard_normal((count, latent), np.float32)

    def longs(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(device)

    return Batch(
        images=images_of(data.images[chosen], device),
        labels=longs(labels),
        contents=images_of(data.contents[data.content_of[chosen]], device),
        styles=images_of(data.styles[data.style_of[chosen]], device),
        others=images_of(data.contents[others], device),
        other_labels=longs(other_labels),
        noise=torch.from_numpy(noise).to(device),
    )


@torch.no_grad()
def grid(system: System, data: SaaeData, device: torch.device, latent: int) -> Image.Image:
    """A picture to look at: for the SAAE every style (left) with every content, else samples."""
    training = system.training
    system.eval()
    rng = np.random.default_rng(3)
    if isinstance(system, Saae):
        rows = np.sort(rng.choice(len(data), min(10, len(data)), replace=False))
        columns = np.linspace(0, len(data.contents) - 1, min(18, len(data.contents)))
        contents = images_of(data.contents[columns.round().astype(int)], device)
        styles = images_of(data.styles[data.style_of[rows]], device)
        count = len(contents)
        images = system.generator(
            contents.repeat(len(styles), 1, 1, 1), styles.repeat_interleave(count, 0)
        )
        left = [_picture(style, contents.shape[2]) for style in styles]
    else:
        count, left = 16, []
        images = system.preview(batch_at(data, 0, 160, latent, 3, device))
    system.train(training)
    cells = [np.asarray(_picture(image)) for image in images]
    lines = [np.concatenate(cells[i : i + count], 1) for i in range(0, len(cells), count)]
    if left:
        lines = [
            np.concatenate([np.asarray(s), line], 1) for s, line in zip(left, lines, strict=True)
        ]
    return Image.fromarray(np.concatenate(lines, 0))


def _picture(image: Tensor, height: int | None = None) -> Image.Image:
    pixels = (image.float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0)
    picture = Image.fromarray(pixels.expand(-1, -1, 3).contiguous().numpy())
    if height and picture.height != height:
        picture = picture.resize((round(picture.width * height / picture.height), height))
    return picture
