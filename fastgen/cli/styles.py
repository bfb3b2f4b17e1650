"""``fastgen styles``: what is shipped."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from fastgen.cli._app import report

__all__ = ["styles"]


@click.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print names, files and cards as JSON.")
def styles(pattern: str, as_json: bool) -> int:
    """List the shipped styles whose names match PATTERN ('*.small', say)."""
    from fastgen.styles import list_styles, style_card, style_path

    rows: list[dict[str, Any]] = []
    for name in list_styles(pattern):
        path = style_path(name)
        rows.append({"name": name, "bytes": os.path.getsize(path), "path": str(path)})
        rows[-1]["card"] = style_card(name)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    if not rows:
        report(f"no style matches {pattern!r}; `fastgen styles` lists all")
        return 1
    if as_json:
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        painting = row["card"].get("painting", {})
        known = [str(painting[k]) for k in ("title", "artist", "year") if painting.get(k)]
        line = f"{row['name']:<{width}}  {row['bytes'] / 1e6:5.2f} MB  {', '.join(known)}"
        click.echo(line.rstrip())
    return 0
