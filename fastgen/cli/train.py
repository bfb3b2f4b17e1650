"""``fastgen train`` and ``fastgen eval``: the recipes of ``fastgen.train``.

The options come from the recipes' dataclasses, which import no torch.
"""

from __future__ import annotations

from typing import Any

from fastgen.cli._app import Commands
from fastgen.train.options import EvalStyleOptions, GatysOptions, StyleOptions, click_command
from fastgen.train.saae_eval_options import (
    CompareSaaeOptions,
    EvalSaaeOptions,
    RecogniserOptions,
)
from fastgen.train.saae_options import SaaeOptions

__all__ = [
    "eval_saae",
    "eval_saae_arms",
    "eval_saae_data",
    "eval_style",
    "evaluate",
    "gatys",
    "saae",
    "style",
    "train",
]


def _run_style(options: Any) -> int | None:
    from fastgen.train import style as recipe

    return recipe.run(options)


def _run_gatys(options: Any) -> int | None:
    from fastgen.train import gatys as recipe

    return recipe.run(options)


def _run_saae(options: Any) -> int | None:
    from fastgen.train import saae as recipe

    return recipe.run(options)


def _run_evaluate(options: Any) -> int | None:
    from fastgen.train import evaluate as recipe

    return recipe.run(options)


def _run_eval_saae(options: Any) -> int | None:
    from fastgen.train import saae_eval as recipe

    return recipe.run(options)


def _run_eval_saae_arms(options: Any) -> int | None:
    from fastgen.train import saae_compare as recipe

    return recipe.run(options)


def _run_eval_saae_data(options: Any) -> int | None:
    from fastgen.train import saae_recogniser as recipe

    return recipe.run(options)


style = click_command("style", StyleOptions, _run_style)
gatys = click_command("gatys", GatysOptions, _run_gatys)
saae = click_command("saae", SaaeOptions, _run_saae)
eval_style = click_command("style", EvalStyleOptions, _run_evaluate)

train = Commands(
    "train",
    {
        "style": ("fastgen.cli.train:style", "Train a network for one painting (Johnson 2016)."),
        "saae": (
            "fastgen.cli.train:saae",
            "Train a generator steered by content and style (Zhao 2017), or a baseline.",
        ),
        "gatys": ("fastgen.cli.train:gatys", "Optimise one picture by projected L-BFGS (Eq. 9)."),
    },
    help="Train a style or a generator, or optimise one picture (needs torch).",
)
eval_saae = click_command("saae", EvalSaaeOptions, _run_eval_saae)
eval_saae_arms = click_command("saae-arms", CompareSaaeOptions, _run_eval_saae_arms)
eval_saae_data = click_command("saae-data", RecogniserOptions, _run_eval_saae_data)
evaluate = Commands(
    "eval",
    {
        "style": ("fastgen.cli.train:eval_style", "Eq. 9 of networks against L-BFGS."),
        "saae": ("fastgen.cli.train:eval_saae", "SAAE: likelihood, swap test, style, copying."),
        "saae-arms": (
            "fastgen.cli.train:eval_saae_arms",
            "SAAE: multi-class against binary discriminator, tuned alike.",
        ),
        "saae-data": (
            "fastgen.cli.train:eval_saae_data",
            "SAAE: does generated data help a recogniser?",
        ),
    },
    help="Measure trained networks on held-out photos (needs torch).",
)
