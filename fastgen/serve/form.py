"""Two files in one request: ``multipart/form-data`` (RFC 7578), as browsers and curl send it."""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser

__all__ = ["FormError", "files_of", "is_form"]

_NAMES = ("photo", "mask")
_HEAD = 4096  # bytes of a part's header


class FormError(ValueError):
    """A body that is no such form."""


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form with files."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def files_of(body: bytes, content_type: str) -> dict[str, bytes]:
    """The files ``photo`` and, perhaps, ``mask``.

    Args:
        body: all of it.
        content_type: of the request; names the boundary.

    Raises:
        FormError: not such a form, a part of another name, one twice, or no photo.
    """
    head = Message()
    head["content-type"] = content_type
    boundary = str(head.get_param("boundary") or "")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise FormError("a form without a boundary of 1 to 70 ASCII characters")
    # One part more than there can be is one too many already.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), len(_NAMES) + 2)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise FormError(f"a form has one or two parts, {' and '.join(_NAMES)}, and an end")
    files: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        lines, end, content = piece.partition(b"\r\n\r\n")
        if not end or len(lines) > _HEAD:
            raise FormError(f"a part of a form without a header of at most {_HEAD} bytes")
        header = BytesHeaderParser().parsebytes(lines.lstrip() + b"\r\n\r\n")
        name = header.get_param("name", header="content-disposition")
        if name not in _NAMES:
            raise FormError(f"a part called {str(name)[:40]!r}, must be photo or mask")
        if name in files:
            raise FormError(f"two parts called {name!r}")
        files[str(name)] = content
    if "photo" not in files:
        raise FormError("a form without a part called 'photo'")
    return files
