"""The report of ``fastgen eval saae`` as text: tables, pictures and the acceptance criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastgen.train.eval_stats import interval, paired, text
from fastgen.train.parzen import CONTROLS
from fastgen.train.saae_attributes import transfer_markdown

__all__ = ["PUBLISHED", "acceptance", "aggregate", "markdown"]

PUBLISHED = (
    ("deep belief network", "138 +- 2"),
    ("stacked contractive autoencoder", "121 +- 1.6"),
    ("deep GSN", "214 +- 1.1"),
    ("GAN", "225 +- 2"),
    ("GMMN + autoencoder", "282 +- 2"),
    ("AAE", "340 +- 2"),
    ("SAAE, multi-class (implied by its text, not printed)", "about 429"),
)
"""Parzen log-likelihoods of MNIST in the literature, same protocol with 10,000 samples."""

MULTI, BINARY = "multi-class", "binary"

# What a row of a model gives for each column: (title, path into the row, digits, percent).
_COLUMNS = (
    ("swap %", ("swap", "accuracy"), 1, True),
    ("own class %", ("swap", "same"), 1, True),
    ("std over styles / real", ("style", "ratio"), 2, False),
    ("stroke width r", ("style", "thickness"), 2, False),
    ("nearer than p1 %", ("copying", "below"), 2, True),
    ("Frechet", ("frechet",), 1, False),
    ("reconstruction", ("rec",), 4, False),
)


def _at(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def aggregate(models: Sequence[Mapping[str, Any]], path: Sequence[str]) -> dict[str, Any] | None:
    """Mean and interval over seeds of one number, None when a model lacks it."""
    values = [_at(row, path) for row in models]
    if not values or any(v is None for v in values):
        return None
    return interval([float(v) for v in values])


def by_arm(report: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The models of each arm, in the order in which the arms appear."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["models"]:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def _verdict(name: str, claim: str, held: bool | None, why: str) -> dict[str, Any]:
    return {"criterion": name, "claim": claim, "held": held, "why": why}


def _a1(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    claim = "multi-class discriminator beats the binary one in Parzen log-likelihood"
    scores = {
        arm: {row["seed"]: row["parzen"]["mean"] for row in arms.get(arm, ()) if row.get("parzen")}
        for arm in (MULTI, BINARY)
    }
    seeds = sorted(set(scores[MULTI]) & set(scores[BINARY]))
    if not seeds:
        return _verdict("A1", claim, None, "not measured: needs both arms with the same seeds")
    gap = paired([scores[MULTI][s] for s in seeds], [scores[BINARY][s] for s in seeds])
    why = f"difference {text(gap, 2)} nats over {len(seeds)} paired seed(s)"
    if len(seeds) < 3:
        return _verdict("A1", claim, None, f"{why}; fewer than 3 seeds decide nothing")
    return _verdict("A1", claim, bool(gap["two_se"] and gap["above"]), why)


def _a2(arm: str, rows: Sequence[Mapping[str, Any]], judge: Mapping[str, Any], data: str) -> Any:
    swap = aggregate(rows, ("swap", "accuracy"))
    ratio = aggregate(rows, ("style", "ratio"))
    stroke = aggregate(rows, ("style", "thickness"))
    goal = 0.95 if data == "mnist" else judge["accuracy"] - 0.05
    claim = f"{arm}: content obeyed (swap >= {100 * goal:.1f} %), style used (both >= 0.5)"
    if swap is None or ratio is None or stroke is None:
        return _verdict("A2", claim, None, "not measured")
    held = swap["mean"] >= goal and ratio["mean"] >= 0.5 and stroke["mean"] >= 0.5
    why = (
        f"swap {text(swap, 1, percent=True)} % (judge on real held-out "
        f"{100 * judge['accuracy']:.1f} %), std ratio {text(ratio)}, stroke width r {text(stroke)}"
    )
    return _verdict("A2", claim, held, f"{why}; {swap['n']} seed(s)")


def _a5(arm: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    claim = f"{arm}: samples are no nearer to training images than unseen real images are"
    below = aggregate(rows, ("copying", "below"))
    if below is None:
        return _verdict("A5", claim, None, "not measured")
    inside = [r["copying"]["first_percentile"] >= r["copying"]["percentile_1"] for r in rows]
    why = (
        f"{text(below, 2, percent=True)} % of samples are nearer than the 1st percentile of real "
        f"test images (1 % would be equal); {len(rows)} seed(s)"
    )
    return _verdict("A5", claim, all(inside), why)


def _failed(row: Mapping[str, Any], level: float | None) -> bool:
    """Criterion A4's failures: reconstruction worse than twice step 1, or D always right."""
    if {"collapse", "divergence"} & set(row["warnings"]):
        return True
    return level is not None and row["rec"] > 2 * level


def _a4(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    claim = "three-step training fails less often than joint training from scratch"
    steps = {row["seed"]: row for row in arms.get(MULTI, ())}
    joint = {row["seed"]: row for row in arms.get(f"{MULTI}, joint", ())}
    seeds = sorted(set(steps) & set(joint))
    if not seeds:
        return _verdict("A4", claim, None, "not measured: needs both schedules, same seeds")
    levels = {s: steps[s].get("rec_level") for s in seeds}
    ours = sum(_failed(steps[s], levels[s]) for s in seeds)
    theirs = sum(_failed(joint[s], levels[s]) for s in seeds)
    gap = paired([steps[s]["rec"] for s in seeds], [joint[s]["rec"] for s in seeds])
    why = (
        f"{ours} against {theirs} failures of {len(seeds)} seeds; held-out reconstruction loss "
        f"minus joint's {text(gap, 5)}"
    )
    return _verdict("A4", claim, ours < theirs if len(seeds) >= 3 else None, why)


def acceptance(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The criteria that the models of a report can decide: A1, A2, A4 and A5.

    Returns:
        ``criterion``, ``claim``, ``held`` (True, False, or None when not decided) and ``why``.
    """
    arms = by_arm(report)
    found = [_a1(arms)] if report["data"] == "mnist" else []
    for arm, rows in arms.items():
        if rows[0].get("swap"):
            found.append(_a2(arm, rows, report["judge"], report["data"]))
        found.append(_a5(arm, rows))
    if f"{MULTI}, joint" in arms:
        found.append(_a4(arms))
    return found


def verdicts(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Acceptance as a Markdown table."""
    words = {True: "held", False: "**not held**", None: "not decided"}
    lines = ["| | claim | | |", "|---|---|---|---|"]
    for row in found:
        lines.append(
            f"| {row['criterion']} | {row['claim']} | {words[row['held']]} | {row['why']} |"
        )
    return lines


def _parzen_table(report: Mapping[str, Any]) -> list[str]:
    samples = report["protocol"]["samples"]
    lines = [
        "## Parzen log-likelihood",
        "",
        f"{samples} images a set, width chosen on {report['protocol']['validation']} validation "
        f"images, mean over {report['protocol']['test']} test images, in nats. The measure rewards "
        "blur: averages of training images score above the images themselves, so read models "
        "against the controls.",
        "",
        "| | seeds | log-likelihood | width |",
        "|---|---|---|---|",
    ]
    for name, row in report["controls"].items():
        lines.append(
            f"| control: {CONTROLS[name][0]} | | {row['mean']:.1f} +- {row['se']:.1f} "
            f"| {row['sigma']:.3f} |"
        )
    for arm, rows in by_arm(report).items():
        if rows[0].get("parzen"):
            result = interval([row["parzen"]["mean"] for row in rows])
            own = max(row["parzen"]["se"] for row in rows)
            widths = ", ".join(sorted({f"{row['parzen']['sigma']:.3f}" for row in rows}))
            lines.append(
                f"| **{arm}** | {result['n']} | {text(result, 1)} (test images: +- {own:.1f}) "
                f"| {widths} |"
            )
    for name, value in PUBLISHED:
        lines.append(f"| published: {name} | | {value} | |")
    return [*lines, ""]


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report; pictures are named as they lie beside it."""
    judge = report.get("judge")
    lines = [f"# SAAE on {report['data']}", ""]
    if report["models"]:
        lines += ["## Acceptance", "", *verdicts(report["acceptance"]), ""]
    if report.get("controls"):
        lines += _parzen_table(report)
    arms = by_arm(report)
    if arms and judge:
        lines += [
            "## Content, style, copying",
            "",
            f"The judge was trained on {judge['images']} real images and reads "
            f"{100 * judge['accuracy']:.2f} % of {judge['held_out']} real ones that it has not "
            f"seen. Frechet distances are in its features; real training images have "
            f"{report['real_frechet']:.1f}. Means over seeds with 95 % intervals where there are "
            "several.",
            "",
            "| arm | seeds | " + " | ".join(c[0] for c in _COLUMNS) + " |",
            "|---|---|" + "---|" * len(_COLUMNS),
        ]
        for arm, rows in arms.items():
            cells = [arm, str(len(rows))]
            for _, path, digits, percent in _COLUMNS:
                result = aggregate(rows, path)
                cells.append("" if result is None else text(result, digits, percent))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    transfers = {
        f"{row['file']} ({row['attribute']})": row["transfer"]
        for row in report["models"]
        if row.get("transfer")
    }
    if transfers:
        lines += transfer_markdown(transfers, report["attribute_judges"])
    for file, caption in report.get("pictures", {}).items():
        lines += [f"![{caption}]({file})", "", caption, ""]
    lines += tuning_lines(report.get("tuning", []))
    if report["models"]:
        lines += [
            "## Models",
            "",
            "| file | arm | seed | width | lambda | updates | minutes | warnings |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in report["models"]:
            updates = " + ".join(f"{n} {kind}" for kind, n in row["steps"].items())
            lines.append(
                f"| {row['file']} | {row['arm']} | {row['seed']} | {row['width']} "
                f"| {row['adv_weight']} | {updates} | {row['minutes']} "
                f"| {', '.join(row['warnings']) or 'none'} |"
            )
        lines.append("")
    return "\n".join(lines)


def tuning_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was tried for each arm before the confirmation."""
    if not rows:
        return []
    lines = [
        "## Tuning",
        "",
        "Both arms tried the same settings on one seed that is not among the confirming ones; the "
        "best on validation images was taken.",
        "",
        "| arm | lambda | log-likelihood of validation images | taken |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['arm']} | {row['adv_weight']} | {row['validation']:.1f} "
            f"| {'yes' if row['taken'] else ''} |"
        )
    return [*lines, ""]
