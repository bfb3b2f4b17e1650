"""Sphinx configuration: Markdown pages and the API reference from docstrings."""

from importlib import metadata

project = "fastgen"
author = "The fastgen developers"
release = version = metadata.version("fastgen")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build", "results"]  # results: reports beside the pages, not pages
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fastgen {release}"
