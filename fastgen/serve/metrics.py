"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counters of one server; several in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self.frames = Counter("fastgen_frames", "Frames painted", ["style"], registry=r)
        self.dropped = Counter(
            "fastgen_frames_dropped", "Frames replaced by newer ones before their turn", registry=r
        )
        self.photos = Counter("fastgen_photos", "Photos painted", ["style"], registry=r)
        self.responses = Counter("fastgen_http_responses", "HTTP responses", ["status"], registry=r)
        self.refused = Counter(
            "fastgen_refused", "Requests and streams that were refused", ["why"], registry=r
        )
        self.seconds = Histogram(
            "fastgen_seconds",
            "Seconds of a stage: decode, wait (for the turn), network, encode, send",
            ["stage"],
            buckets=_SECONDS,
            registry=r,
        )
        self.streams = Gauge("fastgen_streams", "Open streams", registry=r)
        self.waiting = Gauge("fastgen_waiting", "Work that waits for its turn", registry=r)

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self._registry)
