"""The HTTP interface against its own description: odd requests by schemathesis."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from serving import running

schemathesis = pytest.importorskip("schemathesis", reason="generates requests with schemathesis")

OPERATIONS = {
    *("GET /healthz", "GET /metrics", "GET /styles", "GET /styles/{name}/thumbnail"),
    "POST /stylize",
}


_buffer = io.BytesIO()
Image.new("RGB", (20, 12), (200, 60, 20)).save(_buffer, "PNG")
PHOTO = _buffer.getvalue()


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    with running(rate=1_000_000, max_pixels=100_000, max_body=100_000) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        found = [result.ok() for result in schema.get_all_operations()]
        yield {o.label: o for o in found}


def test_the_description_is_complete(operations: dict[str, Any]) -> None:
    assert set(operations) == OPERATIONS


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_what_is_described_is_done(operations: dict[str, Any], label: str) -> None:
    """200, with the type and the body of the description, whatever the allowed values are."""
    options = {"body": PHOTO, "media_type": "image/png"} if label.startswith("POST") else {}
    assert ask(operations[label].as_strategy(**options)) == {200}


def test_what_is_not_described_is_refused(operations: dict[str, Any]) -> None:
    """Wrong values, and bytes that are no picture: a described error, never a 5xx."""
    wrong = schemathesis.GenerationMode.NEGATIVE
    operation = operations["POST /stylize"]
    seen = ask(operation.as_strategy(generation_mode=wrong, body=PHOTO, media_type="image/png"))
    # Some wrong values are right ones once they are text in a URL ("0.5" for 0.5); schemathesis
    # knows which, and fails what is accepted otherwise.
    assert 422 in seen
    assert seen <= {200, 405, 422}
    # Any bytes are what the description allows, and most are no picture.
    assert ask(operation.as_strategy(), "positive_data_acceptance") <= {200, 413, 415}


def ask(strategy: Any, *excluded: str) -> set[int]:
    """Sends what the strategy makes, checks the answers; gives their statuses."""
    seen = set()
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in excluded]

    @settings(max_examples=12, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def send(case: Any) -> None:
        seen.add(case.call_and_validate(excluded_checks=checks).status_code)

    send()
    return seen
