"""Style transfer by optimisation: projected L-BFGS on Eq. 9 of Johnson et al. 2016.

    python -m fastgen.train.gatys --style painting.jpg --content photo.jpg -o result.png

Gatys et al. 2016 with the objective and the projection of Johnson et al.: start from white noise,
pixels clamped to [0, 255] after every iteration, at most 500 iterations. It is the yardstick for
trained networks, and a slow way to try a painting before training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen.checkpoint import atomic_write
from fastgen.train.data import PhotoSet, read_image, resized
from fastgen.train.loop import Progress, pick_device, stop_requests
from fastgen.train.objective import (
    Objective,
    build_objective,
    crops_for_calibration,
    to_tensor,
)
from fastgen.train.options import GatysOptions, main

__all__ = ["GatysOptions", "GatysResult", "gatys", "minimise", "run", "white_noise"]

MAX_ITERATIONS = 500
MEMORY = 20
FIRST_STEP = 8.0  # root mean square of the first step in grey levels


@dataclass(frozen=True)
class GatysResult:
    """Result of an optimisation.

    Attributes:
        image: (1, 3, H, W) in [0, 255].
        objective: Eq. 9 before the first and after every iteration.
        evaluations: Evaluations of objective and gradient.
    """

    image: Tensor
    objective: list[float]
    evaluations: int


def white_noise(height: int, width: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform noise (1, 3, H, W) in [0, 255], the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 3, height, width, generator=generator) * 255).to(device)


class _Curvature:
    """The inverse Hessian of L-BFGS from the last steps (two-loop recursion)."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, float]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        curvature = float(step @ change)
        # Only pairs of positive curvature keep the matrix positive definite.
        if curvature > 1e-10 * float(step.norm() * change.norm()):
            self.pairs = [*self.pairs[-(MEMORY - 1) :], (step, change, 1 / curvature)]

    def direction(self, gradient: Tensor) -> Tensor:
        d, stack = -gradient, []
        for s, y, rho in reversed(self.pairs):
            a = rho * float(s @ d)
            stack.append(a)
            d = d - a * y
        s, y, rho = self.pairs[-1]
        d = d / (rho * float(y @ y))
        for (s, y, rho), a in zip(self.pairs, reversed(stack), strict=True):
            d = d + (a - rho * float(y @ d)) * s
        return d


def minimise(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    report: Callable[[int, float], bool] | None = None,
    low: float = 0.0,
    high: float = 255.0,
) -> GatysResult:
    """Projected L-BFGS: quasi-Newton step, clamp to the box, backtrack until the value falls.

    Curvature pairs are taken after the projection, and pixels that sit at a bound with the gradient
    pointing outwards do not take part in the step; both keep the pairs consistent with the clamp.

    Args:
        function: Differentiable, tensor -> scalar tensor.
        start: First iterate, clamped to the box.
        iterations: Upper limit; fewer when no step decreases the value any more.
        report: Called after each iteration with its number and value; a true result stops.
        low: Lower bound of every element.
        high: Upper bound of every element.

    Returns:
        The last iterate; its ``objective`` never increases.

    Raises:
        ValueError: The function is not finite at ``start``.
    """

    def evaluate(flat: Tensor) -> tuple[float, Tensor]:
        x = flat.detach().view_as(start).requires_grad_()
        value = function(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.reshape(-1)

    x = start.detach().clamp(low, high).reshape(-1)
    value, gradient = evaluate(x)
    if not np.isfinite(value):
        raise ValueError(f"the objective is {value} at the start; check the weights of its terms")
    values, evaluations, memory = [value], 1, _Curvature()
    for iteration in range(1, iterations + 1):
        blocked = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        free = gradient.masked_fill(blocked, 0)
        accepted = False
        while not accepted:
            if memory.pairs:
                direction, step = memory.direction(free).masked_fill(blocked, 0), 1.0
            else:
                direction, step = -free, FIRST_STEP / max(1e-30, float(free.square().mean().sqrt()))
            for _ in range(15):
                candidate = (x + step * direction).clamp(low, high)
                slope = float(gradient @ (candidate - x))
                new_value, new_gradient = evaluate(candidate)
                evaluations += 1
                if np.isfinite(new_value) and slope < 0 and new_value <= value + 1e-4 * slope:
                    accepted = True
                    break
                step *= 0.4
            if not accepted:
                if not memory.pairs:
                    break
                memory = _Curvature()  # stale curvature: try once more along the gradient
        if not accepted:
            break
        memory.add(candidate - x, new_gradient - gradient)
        x, value, gradient = candidate, new_value, new_gradient
        values.append(value)
        if report is not None and report(iteration, value):
            break
    return GatysResult(x.view_as(start), values, evaluations)


def gatys(
    objective: Objective,
    photo: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = MAX_ITERATIONS,
    seed: int = 0,
    report: Callable[[int, float], bool] | None = None,
) -> GatysResult:
    """Minimises Eq. 9 for one photo.

    Args:
        objective: Painting, loss network and weights.
        photo: (1, 3, H, W) RGB in [0, 255].
        start: First picture, white noise from ``seed`` when None.
        iterations: 1 to 500.
        seed: Seed of the noise.
        report: See :func:`minimise`.

    Returns:
        The picture and the objective after every iteration.

    Raises:
        ValueError: ``iterations`` or shapes out of range.
    """
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations is {iterations}; it must be in 1..{MAX_ITERATIONS}")
    if photo.dim() != 4 or photo.shape[:2] != (1, 3):
        raise ValueError(f"photo has shape {tuple(photo.shape)}; expected (1, 3, H, W)")
    if start is None:
        start = white_noise(photo.shape[2], photo.shape[3], seed, photo.device)
    if start.shape != photo.shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, the photo {tuple(photo.shape)}")
    targets = objective.content_targets(photo)

    def function(x: Tensor) -> Tensor:
        return objective(x, targets)["total"].sum()

    return minimise(function, start, iterations, report)


def run(options: GatysOptions) -> int:
    """Stylises one photo by optimisation and writes the picture.

    Ctrl-C stops after the current iteration; the picture so far is written.

    Returns:
        Exit code: 0, or 130 after Ctrl-C.

    Raises:
        ValueError: Wrong options or unreadable files.
    """
    if options.size < 32:
        raise ValueError(f"size is {options.size}; it must be at least 32 pixels")
    suffix = options.output.suffix.lower()
    if options.output.is_dir() or suffix not in Image.registered_extensions():
        raise ValueError(f"output {options.output} must be an image file name, e.g. result.png")
    if not options.output.parent.is_dir():
        raise ValueError(f"folder {options.output.parent} does not exist; create it first")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    image = read_image(options.content)
    if max(image.size) > options.size:
        image = resized(image, long=options.size)
    photo = to_tensor(np.asarray(image)[None], device)
    photos = [photo]
    if options.calibrate is not None:
        photos = list(crops_for_calibration(PhotoSet(options.calibrate), device))
    objective = build_objective(options, options.style, photos, device)
    progress = Progress(options.iterations, 0, 50, options.quiet)
    with stop_requests() as stop_asked:

        def report(iteration: int, value: float) -> bool:
            progress.update(iteration, {"objective": value})
            return stop_asked()

        result = gatys(
            objective,
            photo,
            start=photo.clone() if options.start == "content" else None,
            iterations=options.iterations,
            seed=options.seed,
            report=report,
        )
        stopped = stop_asked()
    write_image(options.output, result.image)
    progress.say(
        f"{options.output}  objective {result.objective[0]:.4g} -> {result.objective[-1]:.4g} in "
        f"{len(result.objective) - 1} iterations"
    )
    return 130 if stopped else 0


def write_image(path: Path, image: Tensor) -> None:
    """Writes a (1, 3, H, W) tensor in [0, 255] as an 8-bit picture, complete or not at all."""
    import io

    array = image[0].clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=Image.registered_extensions()[path.suffix.lower()])
    atomic_write(path, buffer.getvalue())


if __name__ == "__main__":
    main("fastgen train gatys", GatysOptions, run)
