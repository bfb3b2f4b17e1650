"""Glyphs: what is drawn, which font draws it, and what no font has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen import glyphs
from fastgen.glyphs import DEFAULT_FONT, Glyphs, find_font


def test_glyphs_fill_their_box_and_differ() -> None:
    pictures = Glyphs((28, 20), margin=0.1)("0123456789")
    assert pictures.shape == (10, 28, 20)
    assert pictures.dtype == np.float32
    assert pictures.min() == 0
    assert 0.9 < pictures.max() <= 1
    border = 2  # a tenth of 20
    for picture in pictures:
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        assert rows[0] >= border
        assert rows[-1] < 28 - border
        assert columns[0] >= border
        assert columns[-1] < 20 - border
        # It touches the box on one of its sides.
        assert rows[-1] - rows[0] + 1 >= 23 or columns[-1] - columns[0] + 1 >= 15
    flat = pictures.reshape(10, -1)
    distance = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    assert (distance + np.eye(10) * 1e3).min() > 5


def test_small_marks_stay_small() -> None:
    dot, letter = Glyphs((32, 32))(".A")
    assert 0 < dot.sum() < letter.sum() / 4


def test_a_list_gives_one_glyph_for_each_string() -> None:
    draw = Glyphs((24, 24))
    assert draw(["10", "A"]).shape == (2, 24, 24)
    np.testing.assert_array_equal(draw(["A"]), draw("A"))
    assert not draw([" "]).any()


def test_the_default_font_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "_system_fonts", lambda: ())
    find_font.cache_clear()
    assert find_font("Az09") == DEFAULT_FONT
    with pytest.raises(ValueError, match=r"'京'.*fonts-droid-fallback") as info:
        Glyphs((24, 24))("A京")
    assert "\n" not in str(info.value)
    find_font.cache_clear()


def test_province_characters_where_a_font_has_them() -> None:
    try:
        find_font("皖京沪苏浙")
    except ValueError:
        pytest.skip("no font here has Chinese characters")
    pictures = Glyphs((24, 16))("皖京沪苏浙A7")
    flat = pictures.reshape(len(pictures), -1)
    assert (((flat[:, None] - flat[None]) ** 2).sum(-1) + np.eye(7) * 1e3).min() > 5


def test_a_named_font_that_lacks_a_character_is_an_error(tmp_path: Path) -> None:
    draw = Glyphs((24, 24), DEFAULT_FONT)
    with pytest.raises(ValueError, match="has no glyph for '京', '沪'"):
        draw("A京沪京")
    with pytest.raises(ValueError, match="does not exist"):
        Glyphs((24, 24), tmp_path / "none.ttf")
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match="cannot be read"):
        Glyphs((24, 24), tmp_path / "bad.ttf")


@pytest.mark.parametrize("text", ["", [], [""], [1], 7])
def test_nothing_to_draw(text: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Glyphs((24, 24))(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "margin"), [((3, 9), 0.1), ((9, 600), 0.1), ((9, 9), 0.5)])
def test_sizes_have_limits(size: tuple[int, int], margin: float) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        Glyphs(size, margin=margin)
