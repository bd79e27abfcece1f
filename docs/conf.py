"""How the documentation is built: Sphinx, MyST Markdown, furo. Nothing comes from the network."""

import runpy
from pathlib import Path

# The file, not the installed package: the pages may be built from a tree that is not installed.
_version = runpy.run_path(str(Path(__file__).parent.parent / "aiotimer" / "_version.py"))

project = "aiotimer"
author = "aiotimer contributors"
copyright = "2026, aiotimer contributors"
release = version = _version["__version__"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]

# MyST: ::: fences that other renderers show as text, and #anchors for headings down to ###.
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# autodoc: in the order of the source; types belong to signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"aiotimer {release}"
html_show_sphinx = False
