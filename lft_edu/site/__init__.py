"""Build the course as a website: one folder of pages that works offline, from ``file://`` or any web server.

``sources`` stages what is shown: lessons with live figures, exercises, the pages of ``docs/``, and a page per module.
Sphinx, MyST-NB and the theme Furo make the pages (``conf.py``); ``extension`` adds equations as MathML, links that lead
out of the site, glossary links and the buttons of a lesson. All that a page needs lies in the folder: no request goes
anywhere else, and a content security policy in each page says so to the browser.
"""

import importlib.metadata
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

MARK = "objects.inv"  # Sphinx writes it: a folder with it may be replaced


def build(out: str | Path, repository: str | None = None, strict: bool = False) -> Path:
    """Write the course as a website.

    Args:
        out: a new or empty folder, or an earlier website, which is replaced.
        repository: address of the course on GitHub, such as ``https://github.com/OWNER/NAME``, or
            ``https://github.com/OWNER/NAME/tree/BRANCH`` (default: main). Buttons open lessons from there in Colab and
            Binder, and links lead to source files. If None: the Repository of ``[project.urls]`` in pyproject.toml;
            without one there are no such buttons, and what is not a page is text. An empty string: none.
        strict: raise an error for anything that Sphinx warns of, such as a link that leads nowhere. Otherwise warnings
            are printed to stderr.

    Returns:
        The first page, ``index.html`` in ``out``.

    Raises:
        ValueError: ``out`` holds other files, ``repository`` is not such an address, Sphinx is not installed or fails,
            or ``strict`` and there are warnings.
    """
    try:
        from sphinx.application import Sphinx
        from sphinx.errors import SphinxError
        from sphinx.util.docutils import docutils_namespace
    except ImportError:
        raise ValueError("The website is made with Sphinx: pip install 'lft_edu[site]', then run it again.") from None
    from .extension import Repository
    from .sources import stage

    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and ((out / MARK).exists() or not any(out.iterdir()))):
        raise ValueError(f"{out} holds other files: give a new or empty folder, or one that holds an earlier website.")
    address = _configured() if repository is None else repository
    Repository.parse(address)
    with tempfile.TemporaryDirectory(prefix="lft-site-") as work, docutils_namespace():
        sources, pages, warnings = Path(work) / "sources", Path(work) / "pages", io.StringIO()
        stage(sources)
        try:
            app = Sphinx(
                srcdir=sources,
                confdir=Path(__file__).parent,
                outdir=pages,
                doctreedir=Path(work) / "doctrees",
                buildername="html",
                confoverrides={"repository": address},
                status=None,
                warning=warnings,
            )
            app.build()
        except SphinxError as error:
            raise ValueError(f"The website could not be built: {error}") from error
        if found := re.sub(r"\x1b\[[\d;]*m", "", warnings.getvalue()).replace(f"{sources}/", ""):
            if strict:
                raise ValueError(f"The website has mistakes:\n{found}")
            print(found, end="", file=sys.stderr)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(pages, out)
    return out / "index.html"


def _configured() -> str:
    """The repository that pyproject.toml names; empty if it names none."""
    urls = importlib.metadata.metadata("lft_edu").get_all("Project-URL") or []
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Repository", "")
