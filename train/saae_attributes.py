"""Attribute transfer on faces: did the attribute change, and did the rest stay?

The generator gets a face and an example of an attribute's other value. A judge trained on real
faces reads the attribute of the result. What should stay is measured three ways: the other
attributes as their judges read them, the frame around the face, and the whole picture; each beside
what it is between different people, since a distance alone says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.train.judge import Classifier, FitOptions, cached_judge, predict
from fastgen.train.saae_data import load
from fastgen.train.saae_eval_data import EvalData, Part
from fastgen.train.saae_measures import Generate

__all__ = [
    "ATTRIBUTES",
    "attribute_transfer",
    "face_judges",
    "face_labels",
    "frame_distance",
    "transfer_markdown",
]

ATTRIBUTES = ("gender", "age")


def face_labels(
    data: EvalData, attribute: str, source: Path | None = None
) -> dict[str, dict[str, Tensor]]:
    """All attributes of the faces of each part; the parts are those of one attribute.

    The loader splits faces by the attribute that it is asked for, so the other attributes are
    found by the picture itself, and no judge ever sees a face of another part.

    Args:
        data: Faces, read for ``attribute``.
        attribute: The labels of ``data``.
        source: Where the faces are.

    Returns:
        Part (``"train"``, ``"validation"``, ``"test"``) -> attribute -> (N,) values.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    found = {part: {attribute: content.labels} for part, content in parts.items()}
    for other in ATTRIBUTES:
        if other == attribute:
            continue
        known: dict[bytes, int] = {}
        for part in parts:
            faces = load("faces", source, part, attribute=other)
            pairs = zip(faces.images, faces.labels.tolist(), strict=True)
            known |= {image.tobytes(): label for image, label in pairs}
        for part, content in parts.items():
            values = [known[np.ascontiguousarray(i).tobytes()] for i in content.data.images]
            found[part][other] = torch.tensor(values)
    return found


def face_judges(
    train: Part,
    test: Part,
    labels: Mapping[str, Mapping[str, Tensor]],
    cache: Path | None,
    say: Callable[[str], None],
    options: FitOptions,
) -> tuple[dict[str, Classifier], dict[str, dict[str, Any]]]:
    """A judge of each attribute, trained on the training faces and measured on the test faces."""
    judges, infos = {}, {}
    for name in ATTRIBUTES:
        classes = int(labels["train"][name].max()) + 1
        judges[name], infos[name] = cached_judge(
            train.images(),
            labels["train"][name],
            (test.images(), labels["test"][name]),
            classes,
            options,
            cache,
            f"judge-faces-{name}",
            say,
        )
    return judges, infos


def _rms(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1).sqrt()


def frame_distance(a: Tensor, b: Tensor, share: float = 0.1) -> Tensor:
    """Root mean square difference in the outer frame, pair by pair.

    Args:
        a: (N, C, H, W).
        b: (N, C, H, W).
        share: Width of the frame as a share of the smaller side, at least one pixel.

    Returns:
        (N,).
    """
    height, width = a.shape[2:]
    edge = max(1, round(share * min(height, width)))
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[edge:-edge, edge:-edge] = False
    return (a - b)[:, :, mask].square().flatten(1).mean(1).sqrt()


def attribute_transfer(
    generate: Generate,
    judges: Mapping[str, Classifier],
    attribute: str,
    faces: Tensor,
    labels: Mapping[str, Tensor],
    examples: Tensor,
    example_labels: Tensor,
    seed: int = 0,
) -> dict[str, Any]:
    """Each face with one random example of every value of an attribute.

    Args:
        generate: (faces, examples) -> faces.
        judges: Attribute -> classifier trained on real faces; ``attribute`` and the others.
        attribute: The one that the generator transfers.
        faces: (N, 3, H, W) real faces that neither generator nor judges were trained on.
        labels: Attribute -> (N,) values.
        examples: (M, 3, H', W') real examples, not among the training images either.
        example_labels: (M,) their values of ``attribute``.
        seed: Chooses the examples.

    Returns:
        ``changed``: share of results read as the example's value where it differs from the face's
        own; ``kept``: the same where it equals it; ``before``: share of real faces read as that
        other value (what a generator that does nothing would get); ``others``: per other
        attribute, the share of results read as the real face was; ``frame`` and ``picture``
        distances with ``frame_people`` and ``picture_people`` between different people.

    Raises:
        ValueError: No examples of some value, or no judge of the attribute.
    """
    if attribute not in judges:
        raise ValueError(f"no judge of {attribute!r}; there are {', '.join(sorted(judges))}")
    generator = torch.Generator().manual_seed(seed)
    own = labels[attribute]
    values = judges[attribute].classes
    read = {name: predict(judge, faces).argmax(1) for name, judge in judges.items()}
    changed = torch.zeros(2)
    kept = torch.zeros(2)
    before = 0.0
    frames: list[Tensor] = []
    pictures: list[Tensor] = []
    same: dict[str, list[Tensor]] = {name: [] for name in judges if name != attribute}
    for value in range(values):
        pool = torch.nonzero(example_labels == value)[:, 0]
        if not len(pool):
            raise ValueError(f"no example of value {value} of {attribute!r} among {len(examples)}")
        pick = pool[torch.randint(len(pool), (len(faces),), generator=generator)]
        made = generate(faces, examples[pick])
        hit = predict(judges[attribute], made).argmax(1) == value
        other = own != value
        changed += torch.tensor([float(hit[other].sum()), float(other.sum())])
        kept += torch.tensor([float(hit[~other].sum()), float((~other).sum())])
        before += float((read[attribute][other] == value).sum())
        frames.append(frame_distance(made, faces)[other])
        pictures.append(_rms(made, faces)[other])
        for name, found in same.items():
            found.append((predict(judges[name], made).argmax(1) == read[name])[other].float())
    partner = torch.roll(faces, 1, 0)
    return {
        "changed": float(changed[0] / changed[1].clamp(min=1)),
        "kept": float(kept[0] / kept[1].clamp(min=1)),
        "before": before / max(1.0, float(changed[1])),
        "images": int(changed[1]),
        "others": {name: float(torch.cat(found).mean()) for name, found in same.items()},
        "frame": float(torch.cat(frames).mean()),
        "frame_people": float(frame_distance(partner, faces).mean()),
        "picture": float(torch.cat(pictures).mean()),
        "picture_people": float(_rms(partner, faces).mean()),
    }


def transfer_markdown(
    rows: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Results of :func:`attribute_transfer`, one row a model, and the judges' own accuracies."""
    lines = [
        "## Attribute transfer",
        "",
        "Every unseen face with an unseen example of the attribute's other value. `read as` is the "
        "judge's word on the result; a generator that changes nothing would get `without`. What "
        "should stay: other attributes, the frame around the face and the picture, the latter two "
        "as a share of the distance between different people.",
        "",
        "| model | read as the example's value % | without % | same value kept % "
        "| other attributes unchanged % | frame | picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        others = ", ".join(f"{k} {100 * v:.1f}" for k, v in row["others"].items())
        lines.append(
            f"| {name} | {100 * row['changed']:.1f} | {100 * row['before']:.1f} "
            f"| {100 * row['kept']:.1f} | {others} "
            f"| {row['frame'] / row['frame_people']:.2f} "
            f"| {row['picture'] / row['picture_people']:.2f} |"
        )
    told = ", ".join(f"{name} {100 * info['accuracy']:.1f} %" for name, info in judged.items())
    return [*lines, "", f"The judges read real faces that they have not seen: {told}.", ""]
