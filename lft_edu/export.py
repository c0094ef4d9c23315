"""Export an executed notebook as one offline HTML file with interactive figures and MathML equations.

nbconvert's own page shows static images and loads require.js, MathJax, mermaid and widgets from a CDN. All lessons as
one website: :mod:`lft_edu.site`, which draws figures and equations by the same functions.
"""

import html
import re
from importlib import resources
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import nbformat
from jinja2 import DictLoader, pass_context
from jinja2.utils import htmlsafe_json_dumps
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from plotly.offline import get_plotlyjs

from .support.files import atomic_write
from .support.stored import KEYS_JS

FIGURE = "application/vnd.plotly.v1+json"
FIGURES_JS = resources.files("lft_edu.site") / "static" / "figures.js"

# No request and no form leaves the page, whatever a notebook's cells contain.
POLICY = "default-src data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'none'"
TEMPLATE = """{% extends "lab/index.html.j2" %}
{% block html_head_js %}
<meta http-equiv="Content-Security-Policy" content="{{ resources.policy }}">
<script>{{ resources.plotlyjs }}</script>
<script>{{ resources.figuresjs }}</script>
<style>
.lft-answer > summary {
  cursor: pointer; margin: 4px 0 4px 70px; color: #1967d2; font-family: var(--jp-ui-font-family);
}
.jp-RenderedHTMLCommon .highlight pre { font-family: var(--jp-code-font-family); }
</style>
{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_priority %}
{% set figure = output.data["application/vnd.plotly.v1+json"] %}
{% if figure %}
<div class="jp-OutputArea-output" data-mime-type="application/vnd.plotly.v1+json">
{{ figure | figure_html(output | get_metadata("alt", "image/jpeg")) }}
</div>
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block data_png %}
{% set alt = output | get_metadata("alt", "image/png") %}
{{ super() | replace("<img ", '<img alt="' ~ (alt | e) ~ '" ', 1) if alt else super() }}
{% endblock %}
{% block output_group %}
{% if cell.metadata.get("jupyter", {}).get("outputs_hidden") %}
<details class="lft-answer"><summary>Show the answer</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block data_latex %}{{ output.data["text/latex"] | markdown2html }}{% endblock %}
"""


def figure_html(figure: dict, alt: str | None = None) -> str:
    """Return a figure as HTML that ``figures.js`` draws, on a page that has Plotly.

    Args:
        figure: a Plotly figure as JSON: data, layout, frames, config.
        alt: what it shows, in words; its title if None (``pio.show`` stores no alt text).
    """
    # htmlsafe_json_dumps writes < as \u003c, so that no text of a figure can end its script
    label, height = html.escape(alt or _figure_title(figure)), figure.get("layout", {}).get("height")
    style = f"min-height: {height if isinstance(height, (int, float)) else 450}px"  # nothing moves when it is drawn
    data = f'<script type="application/json">{htmlsafe_json_dumps(figure)}</script>'
    return f'<div class="lft-figure" role="group" aria-label="{label}" style="{style}">{data}</div>'


CORRECTIONS = {  # of latex2mathml's output
    "<mi>&#x0007E;</mi>": "<mo>∼</mo>",  # it takes these relations for letters, with no space around them
    "<mi>&#x000B1;</mi>": "<mo>±</mo>",
    "<mo>&#x02016;</mo>": '<mo stretchy="false">‖</mo>',  # a norm's bars grow only after \\left and \\right
    "<mo>&#x0003D;</mo><mo>&#x02212;</mo>": '<mo>=</mo><mo form="prefix">&#x02212;</mo>',  # a sign, not a difference
}


def mathml(tex: str, display: str) -> str:
    """Convert a TeX equation to MathML, which browsers render; return its source where it cannot be converted.

    Args:
        display: ``"inline"`` or ``"block"``.

    Raises:
        ValueError: latex2mathml is not installed.
    """
    try:
        from latex2mathml.converter import convert
    except ImportError:
        raise ValueError("The notebook has equations: pip install latex2mathml, then export it again.") from None
    try:
        equation = convert(tex, display=display)
        root = ElementTree.fromstring(equation)  # it passes a stray & or < through as broken markup
        if any(name.endswith("href") for part in root.iter() for name in part.attrib):
            raise ValueError("an equation with a link, which might run a script")  # \href{javascript:...}
    except Exception:  # its errors have no common base class
        return f"<code>{html.escape(tex)}</code>"
    for wrong, right in CORRECTIONS.items():
        equation = equation.replace(wrong, right)
    return equation


class _Renderer(IPythonRenderer):
    """nbconvert's renderer with equations as MathML, images in HTML embedded, and links to pages beside this one."""

    beside = Path()  # the folder of the page

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link to another lesson leads to its page; without that page, it is text."""
        path, mark, anchor = url.partition("#")
        if not path or re.match(r"[\w+.-]+:|//", path):
            return super().link(text, url, title)
        path = re.sub(r"\.ipynb$", ".html", unquote(path))
        return super().link(text, quote(path) + mark + anchor, title) if (self.beside / path).is_file() else text

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def _html_embed_images(self, html: str) -> str:
        # nbconvert's own closes the tags of each fragment, so that <details> ends before its content
        source = re.compile(r"""(<img\b[^>]*?\bsrc=["'])([^"']+)""")
        return source.sub(lambda found: found[1] + (self._src_to_base64(found[2]) or found[2]), html)


class _Exporter(HTMLExporter):
    """nbconvert's exporter with MathML equations and embedded images in Markdown cells."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments, path = context.get("cell", {}).get("attachments", {}), context["resources"]["metadata"]["path"]
        renderer = _Renderer(escape=False, embed_images=True, attachments=attachments, path=path)
        renderer.beside = context["resources"]["beside"]
        return MarkdownWithMath(renderer=renderer).render(source)


def _figure_title(figure) -> str:
    """Return a figure's title as plain text, for figures without alt text (``pio.show`` stores none)."""
    title = figure.get("layout", {}).get("title") or ""
    text = title if isinstance(title, str) else title.get("text") or ""
    return html.unescape(re.sub("<[^>]*>", " ", text)) or "A figure without a description"


def read(notebook: Path):
    """Read a notebook for a page: without widgets, which need a kernel, and with its heading as its title."""
    if not notebook.is_file():
        raise ValueError(f"{notebook} is not a file: give the path of a notebook (.ipynb).")
    try:
        book = nbformat.read(notebook, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError):
        raise ValueError(f"{notebook} is not a notebook: give an .ipynb file that Jupyter can open.") from None
    book.metadata.pop("widgets", None)  # their text is shown instead
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    if heading := re.search(r"^# +(.+?)[ #]*$", text, re.MULTILINE):
        book.metadata["title"] = re.sub(r"[*_`]|\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
    return book


def export_html(notebook: str | Path, out: str | Path | None = None) -> Path:
    """Write a notebook with its stored outputs as one HTML file that opens offline.

    Images in Markdown cells are embedded if they are in the notebook's folder or below; others are not shown. A link to
    another notebook leads to its page if there is one (``exercises/01_couplings.html`` beside ``out``), and is text
    otherwise.

    The page's content security policy blocks every request and every form. It cannot block navigation: a script in an
    output may still open another address, and with it give away what is on the page. Export notebooks that you trust.

    Args:
        notebook: an .ipynb file.
        out: the .html file to write or replace; next to the notebook, with its name, if None.

    Returns:
        The path written.

    Raises:
        ValueError: not a notebook, no such folder, or latex2mathml is missing.
    """
    notebook = Path(notebook).expanduser()
    out = notebook.with_suffix(".html") if out is None else Path(out).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: give the file to write, ending in .html.")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is not a folder: create it, or give another path.")
    book = read(notebook)
    exporter = _Exporter(
        extra_loaders=[DictLoader({"offline.html.j2": TEMPLATE})], template_file="offline.html.j2",
        filters={"figure_html": figure_html},
    )  # fmt: skip
    page, _ = exporter.from_notebook_node(
        book,
        {
            "metadata": {"name": notebook.stem, "path": str(notebook.parent)},
            "beside": out.parent,
            "policy": POLICY,
            "plotlyjs": get_plotlyjs(),
            "figuresjs": FIGURES_JS.read_text(encoding="utf-8") + KEYS_JS.read_text(encoding="utf-8"),
        },
    )
    with atomic_write(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out
