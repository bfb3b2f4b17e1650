"""The stylized adversarial autoencoder and its baselines as systems that one loop trains.

A system holds its networks and says what its losses are; ``train/saae.py`` decides when each is
minimised. The losses of the SAAE are **our reconstruction** (the article omits them): with y the
class of the target and class k+1 for generated images,

    L_rec = mean (x - G(c, s))^2
    L_adv = -log d_{y(c')}(G(c', s)), c' drawn at random, unpaired with s
    L_G   = L_rec + lambda L_adv

and L_D is the discriminator's cross entropy, over k+1 sigmoids (the paper calls its last layer
sigmoid) or one softmax. Without the unpaired c' the decoder may ignore the content.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.backends.torch import GraphModule
from fastgen.graph import Graph
from fastgen.train.saae_nets import (
    BinaryDiscriminator,
    CodeDiscriminator,
    ConditionalDiscriminator,
    MultiClassDiscriminator,
    decoder_graph,
    encoder_graph,
)

__all__ = ["MODELS", "Autoencoder", "Batch", "Gan", "Saae", "System", "class_targets"]

MODELS = ("saae", "dcgan", "aae", "autoencoder", "cgan")


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        images: (N,C,H,W) targets in 0..1.
        labels: (N,) their classes.
        contents: (N,..) the contents of the targets.
        styles: (N,..) the styles of the targets.
        others: (N,..) contents drawn at random.
        other_labels: (N,) the classes that an image of ``others`` and ``styles`` must have.
        noise: (N,Z) standard normal.
    """

    images: Tensor
    labels: Tensor
    contents: Tensor
    styles: Tensor
    others: Tensor
    other_labels: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Outputs:
    """What the generator made of a batch: the reconstruction, what D is to judge, its classes.

    A system without a reconstruction (or an adversary) has its fakes (or images) in its place.
    """

    rebuilt: Tensor
    fakes: Tensor
    labels: Tensor


def class_targets(labels: Tensor, outputs: int) -> Tensor:
    """One-hot targets (N, outputs) in float32."""
    return F.one_hot(labels, outputs).to(torch.float32)


def _cross_entropy(logits: Tensor, labels: Tensor, form: str) -> Tensor:
    """Mean over the batch: one softmax, or the sum over independent sigmoids."""
    logits = logits.float()
    if form == "softmax":
        return F.cross_entropy(logits, labels)
    targets = class_targets(labels, logits.shape[1])
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


def _real(logits: Tensor, value: float) -> Tensor:
    """Binary cross entropy of one logit against a constant."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, value))


class System(nn.Module, ABC):
    """Networks with their losses; the baselines and the SAAE are its subclasses.

    Attributes:
        generators: the modules that the generator's step trains.
        discriminator: the adversary, where ``adversarial``.
        rebuilds: whether there is a reconstruction loss.
    """

    discriminator: nn.Module
    adversarial = True
    rebuilds = False

    @abstractmethod
    def generators(self) -> list[nn.Module]:
        """Modules of the generator's step."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Outputs:
        """Forward pass of the generator."""

    def rebuild(self, batch: Batch) -> Outputs:
        """Only the reconstruction, for the step that trains nothing else."""
        return self.outputs(batch)

    def rec_loss(self, out: Outputs, batch: Batch) -> Tensor:
        """Mean squared error of the reconstruction."""
        return F.mse_loss(out.rebuilt.float(), batch.images)

    @abstractmethod
    def d_loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the discriminator and its accuracy (the mean of both sides)."""

    @abstractmethod
    def adv_loss(self, out: Outputs, batch: Batch) -> Tensor:
        """Adversarial loss of the generator."""

    def preview(self, batch: Batch) -> Tensor:
        """Images to look at, one for each item of the batch."""
        return self.outputs(batch).fakes[-len(batch.images) :]


class Saae(System):
    """The stylized adversarial autoencoder.

    Args:
        graph: of ``fastgen.models.saae``.
        classes: k.
        discriminator: ``"multi"`` (k+1 outputs) or ``"binary"`` (real or fake).
        form: ``"sigmoid"`` (k+1 independent outputs, as the text has it) or ``"softmax"``.
        width: channels of the discriminator's first convolution.
    """

    rebuilds = True

    def __init__(
        self,
        graph: Graph,
        classes: int,
        discriminator: str = "multi",
        form: str = "sigmoid",
        width: int = 16,
    ) -> None:
        super().__init__()
        if discriminator not in ("multi", "binary"):
            raise ValueError(f"discriminator is {discriminator!r}, must be multi or binary")
        if form not in ("sigmoid", "softmax"):
            raise ValueError(f"form is {form!r}, must be sigmoid or softmax")
        self.generator = GraphModule(graph)
        channels, height, columns = graph.infer_shapes(graph.smallest_shapes())[
            graph.outputs["image"]
        ][1:]
        shape = (channels, height, columns)
        self.binary, self.form, self.fake_class = discriminator == "binary", form, classes
        self.discriminator = (
            BinaryDiscriminator(shape, width)
            if self.binary
            else MultiClassDiscriminator(shape, classes, width)
        )

    def generators(self) -> list[nn.Module]:
        return [self.generator]

    def outputs(self, batch: Batch) -> Outputs:
        # One pass for both: batch norm sees one mixed batch, as it will in use.
        contents = torch.cat([batch.contents, batch.others])
        images = self.generator(contents, torch.cat([batch.styles, batch.styles]))
        labels = torch.cat([batch.labels, batch.other_labels])
        return Outputs(images[: len(batch.images)], images, labels)

    def rebuild(self, batch: Batch) -> Outputs:
        images = self.generator(batch.contents, batch.styles)
        return Outputs(images, images, batch.labels)

    def d_loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        real, fake = self.discriminator(batch.images), self.discriminator(out.fakes.detach())
        if self.binary:
            loss = _real(real, 1.0) + _real(fake, 0.0)
            hits = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
            return loss, hits
        wrong = torch.full((len(fake),), self.fake_class, device=fake.device)
        loss = _cross_entropy(real, batch.labels, self.form) + _cross_entropy(
            fake, wrong, self.form
        )
        hits = (real.argmax(1) == batch.labels).float().mean()
        return loss, (hits + (fake.argmax(1) == self.fake_class).float().mean()) / 2

    def adv_loss(self, out: Outputs, batch: Batch) -> Tensor:
        # The unpaired half only: the paired half has its target.
        count = len(batch.images)
        logits = self.discriminator(out.fakes)[count:]
        if self.binary:
            return _real(logits, 1.0)
        return _cross_entropy(logits, out.labels[count:], self.form)


class Gan(System):
    """DCGAN, or with ``conditional=True`` a conditional GAN.

    Args:
        shape: (channels, height, width) of the images.
        classes: k.
        latent: length of the noise.
        width: of generator and discriminator.
        conditional: give the class to both networks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        latent: int,
        width: int,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes if conditional else 0
        self.generator = GraphModule(decoder_graph(shape, latent + self.classes, 2 * width))
        self.discriminator = (
            ConditionalDiscriminator(shape, classes, width)
            if conditional
            else BinaryDiscriminator(shape, width)
        )

    def generators(self) -> list[nn.Module]:
        return [self.generator]

    def outputs(self, batch: Batch) -> Outputs:
        noise = batch.noise
        if self.classes:
            noise = torch.cat([noise, class_targets(batch.other_labels, self.classes)], 1)
        images = self.generator(noise)
        return Outputs(images, images, batch.other_labels)

    def _judge(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.discriminator(images, labels) if self.classes else self.discriminator(images)

    def d_loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        real = self._judge(batch.images, batch.labels)
        fake = self._judge(out.fakes.detach(), out.labels)
        hits = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return _real(real, 1.0) + _real(fake, 0.0), hits

    def adv_loss(self, out: Outputs, batch: Batch) -> Tensor:
        return _real(self._judge(out.fakes, out.labels), 1.0)


class Autoencoder(System):
    """A plain autoencoder, or with ``adversarial=True`` one whose codes are pulled to N(0, 1).

    Args:
        shape: (channels, height, width) of the images.
        latent: length of the code.
        width: of the networks.
        adversarial: the adversarial autoencoder with a Gaussian prior (Makhzani et al. 2015).
    """

    rebuilds = True

    def __init__(
        self, shape: tuple[int, int, int], latent: int, width: int, adversarial: bool = False
    ) -> None:
        super().__init__()
        self.encoder = GraphModule(encoder_graph(shape, latent, 2 * width))
        self.generator = GraphModule(decoder_graph(shape, latent, 2 * width))
        self.adversarial = adversarial
        if adversarial:
            self.discriminator = CodeDiscriminator(latent)

    def generators(self) -> list[nn.Module]:
        return [self.encoder, self.generator]

    def outputs(self, batch: Batch) -> Outputs:
        codes = self.encoder(batch.images)
        return Outputs(self.generator(codes), codes, batch.labels)

    def d_loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        real, fake = self.discriminator(batch.noise), self.discriminator(out.fakes.detach())
        hits = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return _real(real, 1.0) + _real(fake, 0.0), hits

    def adv_loss(self, out: Outputs, batch: Batch) -> Tensor:
        return _real(self.discriminator(out.fakes), 1.0)

    def preview(self, batch: Batch) -> Tensor:
        return self.generator(batch.noise)
