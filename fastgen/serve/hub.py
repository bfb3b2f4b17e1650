"""What all requests share: styles, turns, counters, and who may do how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from fastgen.serve.metrics import Metrics
from fastgen.serve.settings import Settings
from fastgen.serve.studio import Studio
from fastgen.serve.turns import Turns

__all__ = ["Bucket", "Crowded", "Hub", "Rates"]

T = TypeVar("T")


class Crowded(Exception):
    """No place for another photo.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bucket:
    """Lets so many through a second on average, and as many at once as it holds."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level = burst
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    @property
    def seconds(self) -> float:
        """Until one more may pass, if nothing else does."""
        return max(0.0, (1 - self._level) / self._rate)


class Rates:
    """A bucket for each address; the ones not seen for longest are forgotten.

    Args:
        per_minute: how many may pass; a quarter of a minute's worth at once.
    """

    KEPT = 4096

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str) -> bool:
        """Whether one more from this address may pass now."""
        key = _network(address)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = Bucket(self._per_minute / 60, max(1.0, self._per_minute / 4))
            self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        while len(self._buckets) > self.KEPT:
            self._buckets.popitem(last=False)
        return bucket.take()


def _network(address: str) -> str:
    """An IPv6 host has a whole /64 of addresses to send from."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False))


class Hub:
    """One server's state; made once, before the event loop runs.

    Args:
        settings: see there.

    Raises:
        ValueError, OSError, BackendUnavailable: as for ``Studio``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.studio = Studio(settings)
        self.metrics = Metrics()
        self.rates = Rates(settings.rate)
        self.turns = Turns()
        self.stopping = asyncio.Event()
        self.streams = 0
        self.photos = 0
        self._uploads: Counter[str] = Counter()  # by address
        self.working = 0  # requests and streams that a stop waits for
        self._codecs = ThreadPoolExecutor(2, "fastgen codec")
        self._thumbnails: dict[str, asyncio.Task[bytes]] = {}

    @contextmanager
    def photo(self) -> Iterator[None]:
        """A place for a photo, from its first byte to its result.

        Raises:
            Crowded: all are taken.
        """
        if self.photos >= self.settings.max_waiting:
            raise Crowded(503, f"{self.photos} photos are waiting already; try again later")
        self.photos += 1
        try:
            yield
        finally:
            self.photos -= 1

    @contextmanager
    def upload(self, address: str) -> Iterator[None]:
        """One of an address' uploads: a quarter of the places, so that slow ones leave the rest.

        Raises:
            Crowded: it has as many already.
        """
        key = _network(address)
        if (own := self._uploads[key]) >= max(1, self.settings.max_waiting // 4):
            raise Crowded(429, f"{own} photos are on their way from here; send one after another")
        self._uploads[key] += 1
        try:
            yield
        finally:
            self._uploads[key] -= 1
            if not self._uploads[key]:
                del self._uploads[key]

    def knows(self, token: str | None) -> bool:
        """Whether a token is the right one; takes as long for every wrong one."""
        if self.settings.token is None:
            return True
        return hmac.compare_digest((token or "").encode(), self.settings.token.encode())

    async def apart(self, stage: str, function: Callable[..., T], *arguments: Any) -> T:
        """Runs decoding and encoding beside the event loop, and beside the engine."""
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            return await loop.run_in_executor(self._codecs, function, *arguments)
        finally:
            self.metrics.seconds.labels(stage).observe(time.perf_counter() - start)

    async def thumbnail(self, style: str) -> bytes:
        """A style's small picture, painted when it is first asked for."""
        task = self._thumbnails.get(style)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            work = self.turns.run("thumbnails", lambda: lambda: self.studio.thumbnail(style))
            task = self._thumbnails[style] = asyncio.create_task(work)
        return await asyncio.shield(task)

    def close(self) -> None:
        """Ends the threads; what runs is not waited for."""
        self.turns.close()
        self._codecs.shutdown(wait=False, cancel_futures=True)
