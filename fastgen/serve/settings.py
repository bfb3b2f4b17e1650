"""What is served, to whom, and within which limits."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields

__all__ = ["Settings"]

# Least and largest value of the settings that are numbers.
_RANGES: dict[str, tuple[float, float]] = {
    "max_clients": (1, 10_000),
    "max_body": (1024, 1 << 30),
    "max_pixels": (1, 1_000_000_000),
    "max_frame_pixels": (1, 100_000_000),
    "max_fps": (1, 1000),
    "rate": (1, 1_000_000),
    "max_waiting": (1, 10_000),
    "timeout": (0.1, 3600),
    "idle": (1, 86_400),
    "grace": (0, 600),
}


@dataclass(frozen=True)
class Settings:
    """What a server offers and what it refuses.

    Attributes:
        styles: names of shipped styles, patterns of them (``*.small``) or checkpoint files; the
            first is the page's choice. Empty: all shipped styles.
        backend: as for ``Stylizer``.
        precision: as for ``Stylizer``.
        threads: as for ``Stylizer``.
        token: what clients must show; None asks for nothing.
        hosts: names in ``Host`` headers that are served beside ``localhost``, this machine's name
            and IP addresses. A name that is not known here may be a foreign page that had its name
            point to this machine.
        origins: origins (``https://example.org``) whose pages may use this server, beside its own.
        max_clients: streams at the same time.
        max_body: bytes of a photo's file.
        max_pixels: width*height of a photo.
        max_frame_pixels: width*height of a frame of a stream.
        max_fps: frames a second that are read from one stream; faster ones are slowed down.
        rate: photos (and failed logins, and new streams) a minute from one address.
        max_waiting: photos that may arrive or wait for their turn; of those that arrive, a quarter
            from one address.
        timeout: seconds for a photo, from its first byte to its result.
        idle: seconds without a frame after which a stream is closed.
        grace: seconds that work in hand gets when the server stops.

    Raises:
        ValueError: a number outside its range, an empty token.
        TypeError: something that is not a number where one is needed.
    """

    styles: tuple[str | os.PathLike[str], ...] = ()
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_clients: int = 16
    max_body: int = 20_000_000
    max_pixels: int = 16_777_216
    max_frame_pixels: int = 2_097_152
    max_fps: float = 120.0
    rate: float = 240.0
    max_waiting: int = 16
    timeout: float = 30.0
    idle: float = 300.0
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(getattr(type(self), name), int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "an integer" if whole else "a number"
                raise TypeError(f"{name} is {value!r}, must be {kind}")
            if not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be in {low:g}..{high:g}")
        if self.token is not None:
            # Cookies and headers hold these characters as they are.
            plain = self.token.isascii() and self.token.isprintable()
            if len(self.token) < 8 or not plain or set(self.token) & set(' ",;\\'):
                raise ValueError(
                    "the token must be at least 8 printable ASCII characters without spaces, "
                    "quotes, commas, semicolons and backslashes"
                )

    @property
    def max_message(self) -> int:
        """Largest WebSocket message in bytes: a header and an RGBA frame, or a photo's file."""
        return max(4 * self.max_frame_pixels, self.max_body) + 8192

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "token")
        return f"Settings({', '.join(shown)}, token={'***' if self.token else None})"
