"""How the documentation is built: Sphinx, MyST Markdown, furo. Nothing comes from the network."""

import os
import runpy
from pathlib import Path

# The file, not the installed package: the pages may be built from a tree that is not installed.
_version = runpy.run_path(str(Path(__file__).parent.parent / "aiotimer" / "_version.py"))

project = "aiotimer"
author = "aiotimer contributors"
copyright = "2026, aiotimer contributors"
release = version = _version["__version__"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["examples"]

# MyST: ::: fences that other renderers show as text, and #anchors for headings down to ###.
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# autodoc: in the order of the source; types belong to signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["torch"]  # whose adapter is documented where torch is not installed, too
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"aiotimer {release}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["phone.css"]

# Copied are commands without their prompt and what they print, and whole programs.
copybutton_prompt_text = "$ "
copybutton_selector = ":is(.highlight-console, .highlight-python) pre"

# Where the repository is, Read the Docs says; a build elsewhere has no links to it.
_repository = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")
if _repository.startswith("https://"):
    html_theme_options = {
        "source_repository": _repository,
        "source_branch": os.environ.get("READTHEDOCS_GIT_IDENTIFIER", "main"),
        "source_directory": "docs/",
        "footer_icons": [{"name": "Source", "url": _repository, "html": "Source", "class": ""}],
    }
