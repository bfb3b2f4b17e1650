"""``fastgen eval saae``: stylized adversarial autoencoders and their baselines, as numbers.

    fastgen eval saae runs/*.safetensors -o docs/results/saae/mnist.json

Fixed protocols: Parzen log-likelihood beside its controls (MNIST), the swap test, the use of style,
copying, a Frechet distance in the judge's features, and the pictures of the paper's figures 3, 5
and 6. Models of one arm with different seeds are averaged; see docs/saae-evaluation.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.checkpoint import atomic_write
from fastgen.train import eval_pictures as pictures
from fastgen.train.judge import Classifier, FitOptions, cached_judge
from fastgen.train.loop import pick_device
from fastgen.train.options import main
from fastgen.train.parzen import controls, nearest, parzen
from fastgen.train.saae_attributes import attribute_transfer, face_judges, face_labels
from fastgen.train.saae_eval_data import EvalData, load_data
from fastgen.train.saae_eval_models import EvalModel, load_model
from fastgen.train.saae_eval_options import EvalSaaeOptions
from fastgen.train.saae_measures import copying, feature_distance, style_use, swap_test
from fastgen.train.saae_report import acceptance, markdown

__all__ = ["EvalSaaeOptions", "evaluate_saae", "judge_of", "run"]

VALIDATION = 1000
PROTOCOL = 1  # of the measures of a model; rows of another one are measured again
JUDGES = {
    "mnist": FitOptions(steps=2000, batch=128, width=16),
    "iiit5k": FitOptions(steps=1500, batch=128, width=16),
    "plates": FitOptions(steps=1500, batch=128, width=16),
    "faces": FitOptions(steps=1500, batch=64, width=16),
}


def _say(options: EvalSaaeOptions) -> Callable[[str], None]:
    return (
        (lambda line: None)
        if options.quiet
        else (lambda line: print(line, file=sys.stderr, flush=True))
    )


def judge_of(
    data: EvalData, cache: Path | None, say: Callable[[str], None]
) -> tuple[Classifier, dict[str, Any]]:
    """The judge of a data set: trained on its real training images, measured on its test images."""
    options = JUDGES[data.name]
    held_out = (data.test.images(), data.test.labels)
    return cached_judge(
        data.train.images(),
        data.train.labels,
        held_out,
        len(data.classes),
        options,
        cache,
        f"judge-{data.name}",
        say,
    )


@dataclass
class _Context:
    """What all models of one evaluation are measured with."""

    data: EvalData
    judge: Classifier
    options: EvalSaaeOptions
    train: Tensor
    validation: Tensor | None
    test: Tensor
    labels: Mapping[str, Mapping[str, Tensor]]
    attribute_judges: Mapping[str, Classifier]

    def generator(self, salt: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed * 1000 + salt)


def _measure(model: EvalModel, context: _Context) -> dict[str, Any]:
    """The row of one model."""
    data, options = context.data, context.options
    began = time.perf_counter()
    samples = model.samples(data, options.samples, context.generator(1))
    row: dict[str, Any] = {
        **model.info,
        "settings": _settings(options),
        "frechet": feature_distance(context.judge, samples, context.test),
    }
    unseen = torch.randperm(len(context.test), generator=context.generator(7))
    row["copying"] = copying(
        samples[: options.neighbours],
        context.train,
        context.test[unseen[: options.neighbours]],
    )
    if context.validation is not None:
        row["parzen"] = parzen(samples, context.validation, context.test).to_json()
    if model.takes_style:
        index = torch.randperm(len(data.test), generator=context.generator(2))[: options.styles]
        styles, labels = data.test.styles(index), data.test.labels[index]
        rebuilt = model(data.test.contents(index), styles)
        row["rec"] = float((rebuilt - data.test.images(index)).square().mean())
        if data.has_glyphs:
            row["swap"] = swap_test(model, context.judge, data.glyphs, styles, labels)
            row["style"] = style_use(
                model, data.glyphs, styles, labels, context.test, data.test.labels
            )
        else:
            row["transfer"] = attribute_transfer(
                model,
                context.attribute_judges,
                model.info["attribute"],
                data.test.contents(index),
                {name: values[index] for name, values in context.labels["test"].items()},
                data.validation.styles(torch.arange(len(data.validation))),
                context.labels["validation"][model.info["attribute"]],
                options.seed,
            )
    row["evaluation_seconds"] = round(time.perf_counter() - began, 1)
    return row


def _settings(options: EvalSaaeOptions) -> dict[str, int]:
    return {
        "samples": options.samples,
        "styles": options.styles,
        "neighbours": options.neighbours,
        "seed": options.seed,
        "protocol": PROTOCOL,
    }


def _pictures(
    models: Sequence[EvalModel], context: _Context, folder: Path, stem: str
) -> dict[str, str]:
    """Figures 5, 6 and 3 of the paper for the first model of each arm."""
    data, alone = context.data, context.options.generated_only
    found: dict[str, str] = {}
    first: dict[str, EvalModel] = {}
    for model in models:
        first.setdefault(model.info["arm"], model)
    chosen = torch.randperm(len(data.train), generator=context.generator(3))[:100]
    pages, names = [], []
    for arm, model in first.items():
        made = model.samples(data, 100, context.generator(4))
        pages.append(pictures.sheet(pictures.square(made, 10), 1))
        names.append(arm)
    if not alone:
        pages.append(pictures.sheet(pictures.square(data.train.images(chosen), 10), 1))
    file = f"{stem}_samples.png"
    pictures.save_sheet(folder / file, pictures.beside(pages))
    last = "." if alone else "; last: training images."
    found[file] = f"Random samples, left to right: {', '.join(names)}{last}"
    for arm, model in first.items():
        if not model.takes_style or (alone and not data.has_glyphs):
            continue
        index = torch.randperm(len(data.test), generator=context.generator(5))
        styles, rows = data.test.styles(index[:12]), []
        if data.has_glyphs:
            shown = torch.stack([glyph for glyph, _ in data.glyphs[: context.options.columns]])
        else:
            shown = data.test.contents(index[12:24])
        for style in styles:
            made = model(shown, style.expand(len(shown), *style.shape))
            rows.append([*made] if alone else [style, *made])
        slug = "_".join(arm.replace(",", "").split())
        file = f"{stem}_{slug}_grid.png"
        head = [*shown] if alone else [styles[0] * 0 + 1, *shown]
        pictures.save_sheet(folder / file, pictures.sheet([head, *rows], 1))
        where = "" if alone else " (first column)"
        found[file] = f"{arm}: every content (columns) in the style of one unseen image{where}."
        if alone:
            continue
        samples = model.samples(data, 16, context.generator(6))
        _, near = nearest(samples, context.train)
        file = f"{stem}_{slug}_nearest.png"
        page = pictures.sheet([list(samples), list(context.train[near[:, 0]])], 2)
        pictures.save_sheet(folder / file, page)
        found[file] = f"{arm}: samples (top) and the nearest training image of each (bottom)."
    return found


def _known(options: EvalSaaeOptions) -> dict[str, Any]:
    """Rows and controls of an earlier report at the same place, to continue from."""
    if options.output is None or not options.output.is_file():
        return {}
    try:
        report = json.loads(options.output.read_text(encoding="utf-8"))
        return report if report["kind"] == "eval saae" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check(options: EvalSaaeOptions) -> None:
    for name, low in (("samples", 100), ("styles", 30), ("neighbours", 100), ("columns", 1)):
        value = getattr(options, name)
        if value < low:
            raise ValueError(f"{name} is {value}; at least {low} (--{name})")
    if options.output is not None and options.output.suffix != ".json":
        raise ValueError(f"output {options.output} must end in .json")
    if not options.checkpoints and options.data is None:
        raise ValueError("give checkpoints to measure, or --data mnist for the controls alone")


def evaluate_saae(
    options: EvalSaaeOptions, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measures models of one data set; writes JSON, Markdown and pictures when asked to.

    The report is saved after every model; models that an earlier report at the same place has
    measured with the same settings are not measured again.

    Args:
        options: See :class:`EvalSaaeOptions`.
        extra: ``tuning`` (how the models' settings were chosen) and ``rec_level`` (per file, the
            loss at the end of step 1), for the report.

    Returns:
        The report.

    Raises:
        ValueError: Unusable files or settings, or models of different data sets.
    """
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    say, device = _say(options), pick_device(options.device)
    models = [load_model(path, device) for path in options.checkpoints]
    names = {model.data for model in models} | ({options.data} if options.data else set())
    if len(names) != 1:
        raise ValueError(f"models of {', '.join(sorted(names))}; evaluate one data set at a time")
    attributes = sorted({m.info["attribute"] for m in models if m.info["attribute"]})
    if len(attributes) > 1:
        raise ValueError(f"models of {' and '.join(attributes)}; evaluate one attribute at a time")
    data = load_data(names.pop(), options.source, *attributes)
    cache = options.cache or (options.output.with_suffix(".cache") if options.output else None)
    known = _known(options)
    validation = data.validation.images()[:VALIDATION] if data.name == "mnist" else None
    test = data.test.images()
    report: dict[str, Any] = {
        "kind": "eval saae",
        "data": data.name,
        "protocol": {
            **_settings(options),
            "validation": VALIDATION if validation is not None else 0,
            "test": len(test),
        },
        "torch": torch.__version__,
        "controls": {},
        "models": [],
        "pictures": {},
        "tuning": list((extra or {}).get("tuning", ())),
    }

    rows = {
        row["sha256"]: row
        for row in known.get("models", ())
        if row["settings"] == _settings(options)
    }

    def save() -> None:
        # Known rows of later models stay in the file while earlier ones are measured.
        report["models"] = [rows[k] for m in models if (k := m.info["sha256"]) in rows]
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(options.output, json.dumps(report, indent=1).encode())

    if validation is not None:
        report["controls"] = _controls(data, validation, test, known, options, say)
        save()
    if models:
        judge, report["judge"] = judge_of(data, cache, say)
        labels: dict[str, dict[str, Tensor]] = {}
        judges: dict[str, Classifier] = {}
        if data.name == "faces":
            labels = face_labels(data, attributes[0], options.source)
            judges, report["attribute_judges"] = face_judges(
                data.train, data.test, labels, cache, say, JUDGES["faces"]
            )
        train = data.train.images()
        context = _Context(data, judge, options, train, validation, test, labels, judges)
        chosen = torch.randperm(len(train), generator=context.generator(0))[: options.samples]
        report["real_frechet"] = feature_distance(judge, train[chosen], test)
        levels = (extra or {}).get("rec_level", {})
        for number, model in enumerate(models, 1):
            key = model.info["sha256"]
            if key not in rows:
                say(f"measuring {number}/{len(models)}: {model.info['file']}")
                rows[key] = _measure(model, context)
            rows[key]["rec_level"] = levels.get(model.info["file"])
            save()
        report["acceptance"] = acceptance(report)
        if options.output is not None:
            report["pictures"] = _pictures(
                models, context, options.output.parent, options.output.stem
            )
    save()
    if options.output is not None:
        atomic_write(options.output.with_suffix(".md"), markdown(report).encode())
    return report


def _controls(
    data: EvalData,
    validation: Tensor,
    test: Tensor,
    known: Mapping[str, Any],
    options: EvalSaaeOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The controls, from the earlier report when it has them for as many samples."""
    old = known.get("controls")
    if old and known.get("protocol", {}).get("samples") == options.samples:
        return dict(old)
    say("measuring the controls (minutes)")
    found = controls(data.train.images()[:, 0], validation[:, 0], test[:, 0], options.samples)
    return {name: result.to_json() for name, result in found.items()}


def run(options: EvalSaaeOptions) -> int:
    """Runs :func:`evaluate_saae` and prints the report on stdout.

    Returns:
        Exit code 0.
    """
    print(markdown(evaluate_saae(options)))
    return 0


if __name__ == "__main__":
    main("fastgen eval saae", EvalSaaeOptions, run)
