"""Networks and losses of the SAAE and its baselines against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from fastgen.models.saae import saae_net  # noqa: E402
from fastgen.train.loop import Processes  # noqa: E402
from fastgen.train.saae_nets import (  # noqa: E402
    BinaryDiscriminator,
    ConditionalDiscriminator,
    MultiClassDiscriminator,
    decoder_graph,
    encoder_graph,
)
from fastgen.train.saae_systems import Autoencoder, Batch, Gan, Saae  # noqa: E402
from fastgen.train.saae_update import update  # noqa: E402
from fastgen.train.saae_watch import Plateau, Watch, diversity  # noqa: E402

CLASSES = 3


def num(value: object) -> float:
    """A number of a tensor, array or number, without its gradient."""
    return float(torch.as_tensor(value).detach())


def batch(count: int = 4, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g)

    def label() -> torch.Tensor:
        return torch.randint(0, CLASSES, (count,), generator=g)

    return Batch(
        images=rand(count, 1, 8, 8),
        labels=label(),
        contents=rand(count, 1, 8, 8),
        styles=rand(count, 1, 6, 10),
        others=rand(count, 1, 8, 8),
        other_labels=label(),
        noise=torch.randn(count, 5, generator=g),
    )


def saae(**config: object) -> Saae:
    torch.manual_seed(0)
    graph = saae_net("t", (1, 8, 8), (1, 6, 10), 1, 2, 5)
    return Saae(graph, CLASSES, width=2, **config)  # type: ignore[arg-type]


def test_the_discriminator_is_the_network_it_says() -> None:
    torch.manual_seed(1)
    net = MultiClassDiscriminator((1, 9, 8), CLASSES, 2).eval()
    w = {k: v.double() for k, v in net.state_dict().items()}
    convs = sorted({k.split(".")[1] for k in w if k.startswith("features") and w[k].dim() == 4})
    assert len(convs) == 3
    x = torch.rand(2, 1, 9, 8).double()
    y = x
    for number, key in enumerate(sorted(map(int, convs))):
        y = F.conv2d(y, w[f"features.{key}.weight"], padding=1)
        y = y / math.sqrt(1 + 1e-5)  # a fresh batch norm
        y = torch.maximum(y, 0.2 * y)
        if number == 0:  # 2x2 max-pool after the first convolution; the odd row is dropped
            y = y[:, :, :8].reshape(2, -1, 4, 2, 4, 2).amax((3, 5))
    y = y.flatten(1) @ w["head.0.weight"].T + w["head.0.bias"]
    y = torch.maximum(y, 0.2 * y) @ w["head.2.weight"].T + w["head.2.bias"]
    assert y.shape == (2, CLASSES + 1)
    torch.testing.assert_close(net.double()(x), y)
    assert BinaryDiscriminator((1, 9, 8), 2)(x.float()).shape == (2, 1)
    conditional = ConditionalDiscriminator((1, 8, 8), CLASSES, 2).eval()
    images = torch.rand(1, 1, 8, 8).expand(2, -1, -1, -1)
    assert conditional(images, torch.tensor([0, 1])).diff(dim=0).abs().max() > 0
    with pytest.raises(ValueError, match="labels"):
        conditional(images)
    with pytest.raises(ValueError, match="2x2"):
        MultiClassDiscriminator((1, 1, 8), CLASSES)


def bce(logits: torch.Tensor, target: np.ndarray) -> float:
    """Sum over outputs of -t log d - (1-t) log(1-d), mean over the batch, in float64."""
    d = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    return num(-(target * np.log(d) + (1 - target) * np.log(1 - d)).sum(1).mean())


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
def test_multi_class_losses(form: str) -> None:
    system, b = saae(form=form).eval(), batch()
    out = system.outputs(b)
    assert out.fakes.shape == (8, 1, 8, 8)
    rebuilt = system.generator(b.contents, b.styles)
    torch.testing.assert_close(out.rebuilt, rebuilt)
    assert num(system.rec_loss(out, b)) == pytest.approx(
        num(((rebuilt - b.images) ** 2).mean()), rel=1e-5
    )
    real, fake = system.discriminator(b.images), system.discriminator(out.fakes)
    loss, accuracy = system.d_loss(out, b)
    swapped = fake[4:]
    if form == "sigmoid":
        eye = np.eye(CLASSES + 1)
        expected = bce(real, eye[b.labels]) + bce(fake, eye[[CLASSES] * 8])
        adversarial = bce(swapped, eye[b.other_labels])
    else:
        log = [t.detach().double().log_softmax(1).numpy() for t in (real, fake, swapped)]
        rows = np.arange(4)
        expected = -log[0][rows, b.labels].mean() - log[1][:, CLASSES].mean()
        adversarial = -log[2][rows, b.other_labels].mean()
    assert num(loss) == pytest.approx(num(expected), rel=1e-5)
    assert num(system.adv_loss(out, b)) == pytest.approx(num(adversarial), rel=1e-5)
    hits = (real.argmax(1) == b.labels).float().mean() + (fake.argmax(1) == CLASSES).float().mean()
    assert num(accuracy) == pytest.approx(num(hits / 2))


def test_binary_losses() -> None:
    system, b = saae(discriminator="binary").eval(), batch()
    out = system.outputs(b)
    real, fake = system.discriminator(b.images), system.discriminator(out.fakes)
    expected = bce(real, np.ones((4, 1))) + bce(fake, np.zeros((8, 1)))
    loss, accuracy = system.d_loss(out, b)
    assert num(loss) == pytest.approx(expected, rel=1e-5)
    assert num(system.adv_loss(out, b)) == pytest.approx(bce(fake[4:], np.ones((4, 1))), rel=1e-5)
    assert num(accuracy) == pytest.approx(
        num(((real > 0).float().mean() + (fake < 0).float().mean()) / 2)
    )


def test_unknown_forms() -> None:
    for config in ({"form": "tanh"}, {"discriminator": "ternary"}):
        with pytest.raises(ValueError, match=next(iter(config))):
            saae(**config)


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any((v != before[k]).any() for k, v in module.named_parameters())


def run(system, kind: str, seed: int = 0, **config: object) -> tuple[dict, bool, bool]:
    system.train()
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    before = {k: v.detach().clone() for k, v in system.named_parameters()}
    terms = update(
        system, optimizer, batch(seed=seed), kind, (1e-2, 1e-2), 0.1, Processes("cpu"), **config
    )
    d = {k[14:]: v for k, v in before.items() if k.startswith("discriminator.")}
    g = {k: v for k, v in before.items() if not k.startswith("discriminator.")}
    rest = any((v != g[k]).any() for k, v in system.named_parameters() if k in g)
    return terms, rest, changed(system.discriminator, d) if d else False


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator", "terms"),
    [
        ("rec", True, False, {"rec"}),
        ("dis", False, True, {"d", "accuracy"}),
        ("joint", True, True, {"d", "accuracy", "rec", "adv"}),
        ("per-iter", True, True, {"d", "accuracy", "rec", "adv"}),
    ],
)
def test_each_phase_trains_what_it_says(
    kind: str, generator: bool, discriminator: bool, terms: set[str]
) -> None:
    found, g, d = run(saae(), kind)
    assert set(found) == terms
    assert (g, d) == (generator, discriminator)


def test_the_generators_step_leaves_the_discriminator_alone() -> None:
    """With a discriminator's rate of 0, a joint update changes the generator only."""
    system = saae().train()
    optimizer = torch.optim.SGD(system.parameters(), lr=0.1)
    before = {k: v.detach().clone() for k, v in system.discriminator.named_parameters()}
    update(system, optimizer, batch(), "joint", (0.1, 0.0), 1.0, Processes("cpu"))
    assert not changed(system.discriminator, before)
    assert all(p.requires_grad for p in system.discriminator.parameters())


def test_joint_gradient_is_rec_plus_lambda_adv() -> None:
    system, b, weight = saae().train(), batch(), 0.3
    state = {k: v.clone() for k, v in system.state_dict().items()}
    optimizer = torch.optim.SGD(system.parameters(), lr=1.0)
    update(system, optimizer, b, "joint", (1.0, 0.0), weight, Processes("cpu"))
    after = system.generator.get_parameter("dec3.weight").detach().clone()
    system.load_state_dict(state)
    out = system.outputs(b)
    system.d_loss(out, b)  # batch norm's running sums aside, the same forward passes
    loss = system.rec_loss(out, b) + weight * system.adv_loss(out, b)
    parameter = system.generator.get_parameter("dec3.weight")
    (gradient,) = torch.autograd.grad(loss, parameter)
    torch.testing.assert_close(after, parameter - gradient, atol=1e-6, rtol=1e-4)


def test_learning_the_reconstruction_lowers_it() -> None:
    system = saae().train()
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    values = [
        num(update(system, optimizer, batch(), "rec", (1e-2, 0), 0, Processes("cpu"))["rec"])
        for _ in range(40)
    ]
    assert values[-1] < values[0] / 2


def test_bf16_follows_fp32() -> None:
    torch.manual_seed(0)
    low, full = run(saae(), "joint", low=True)[0], run(saae(), "joint")[0]
    assert num(low["rec"]) == pytest.approx(num(full["rec"]), rel=0.05)
    assert num(low["rec"]) != num(full["rec"])


@pytest.mark.parametrize("conditional", [False, True])
def test_gan_baselines(conditional: bool) -> None:
    torch.manual_seed(0)
    system, b = Gan((1, 8, 8), CLASSES, 5, 2, conditional), batch()
    out = system.eval().outputs(b)
    assert out.fakes.shape == (4, 1, 8, 8)
    assert 0 < num(out.fakes.min()) < num(out.fakes.max()) < 1
    args = (b.labels,) if conditional else ()
    fake_args = (b.other_labels,) if conditional else ()
    real, fake = system.discriminator(b.images, *args), system.discriminator(out.fakes, *fake_args)
    expected = bce(real, np.ones((4, 1))) + bce(fake, np.zeros((4, 1)))
    assert num(system.d_loss(out, b)[0]) == pytest.approx(expected, rel=1e-5)
    assert num(system.adv_loss(out, b)) == pytest.approx(bce(fake, np.ones((4, 1))), rel=1e-5)
    terms, g, d = run(system, "joint")
    assert (set(terms), g, d) == ({"d", "accuracy", "adv"}, True, True)


@pytest.mark.parametrize("adversarial", [False, True])
def test_autoencoder_baselines(adversarial: bool) -> None:
    torch.manual_seed(0)
    system, b = Autoencoder((1, 8, 8), 5, 2, adversarial), batch()
    out = system.eval().outputs(b)
    torch.testing.assert_close(out.rebuilt, system.generator(system.encoder(b.images)))
    if adversarial:
        real, fake = system.discriminator(b.noise), system.discriminator(out.fakes)
        expected = bce(real, np.ones((4, 1))) + bce(fake, np.zeros((4, 1)))
        assert num(system.d_loss(out, b)[0]) == pytest.approx(expected, rel=1e-5)
    terms, g, d = run(system, "per-iter" if adversarial else "rec")
    assert g
    assert d == adversarial
    assert ("d" in terms) == adversarial


def test_baseline_graphs_mirror_each_other() -> None:
    for shape in ((1, 28, 28), (3, 24, 16)):
        decoder, encoder = decoder_graph(shape, 6, 2), encoder_graph(shape, 6, 2)
        shapes = decoder.infer_shapes({"latent": (2, 6)})
        assert shapes["image"] == (2, *shape)
        assert encoder.infer_shapes({"image": (2, *shape)})["code"] == (2, 6)
    with pytest.raises(ValueError, match="multiples of 4"):
        decoder_graph((1, 30, 28), 6)


def test_plateau() -> None:
    plateau = Plateau(patience=2, gain=0.1)
    assert [plateau.reached(v) for v in (1.0, 0.8, 0.75, 0.6, 0.59)] == [False] * 5
    again = Plateau(patience=2, gain=0.1)
    again.load(plateau.to_json())
    assert plateau.reached(0.58)
    assert again.reached(0.58)
    assert Plateau(1).to_json() == [-1.0, 0]


def test_collapse_and_divergence_are_said_once() -> None:
    watch = Watch(window=3)
    watch.rec_level = 0.1
    good = {"accuracy": 0.8, "rec": 0.15}
    assert [watch.update(i, good) for i in range(4)] == [[]] * 4
    said = [watch.update(i, {"accuracy": 1.0, "rec": 0.9}) for i in range(6)]
    texts = [text for lines in said for text in lines]
    assert len(texts) == 2
    assert {t.split(": ")[1] for t in texts} == {"collapse", "divergence"}
    again = Watch(window=3)
    again.load(watch.to_json())
    assert again.warnings == watch.warnings
    assert again.update(9, {"accuracy": 1.0, "rec": 0.9}) == []
    assert watch.diversity(5, 0.4) == []
    assert "style is ignored" in watch.diversity(5, 0.04)[0]


def test_diversity_is_the_share_of_the_real_spread() -> None:
    system = saae().eval()
    content, styles = torch.rand(1, 8, 8), torch.rand(16, 1, 6, 10)
    real = torch.rand(30, 1, 8, 8)
    images = torch.stack([system.generator(content[None], s[None])[0] for s in styles])
    expected = images.detach().numpy().std(0).mean() / real.numpy().std(0).mean()
    assert diversity(system, content, styles, real) == pytest.approx(num(expected), rel=1e-4)
    assert diversity(system, content, styles[:1].expand(5, -1, -1, -1), real) < 1e-6
