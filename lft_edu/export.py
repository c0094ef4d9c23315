"""Export an executed notebook as one offline HTML file with interactive figures and MathML equations.

nbconvert's own page shows static images and loads require.js, MathJax, mermaid and widgets from a CDN.
"""

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
from jinja2 import DictLoader, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from plotly.offline import get_plotlyjs

from .support.files import atomic_write

# The policy blocks all requests, whatever a notebook's cells contain. tojson writes < as \u003c, so that no text of a
# figure can end its script.
TEMPLATE = """{% extends "lab/index.html.j2" %}
{% block html_head_js %}
<meta http-equiv="Content-Security-Policy" content="default-src data: blob: 'unsafe-inline' 'unsafe-eval'">
<script>{{ resources.plotlyjs }}</script>
<script>
function drawFigure(box, figure) {
  Plotly.newPlot(box, figure.data, figure.layout, {...figure.config, responsive: true})
    .then(() => Plotly.addFrames(box, figure.frames || []));
  box.tabIndex = 0;  // arrow keys do what the mouse does on the slider
  box.addEventListener('keydown', event => {
    const slider = box._fullLayout.sliders?.[0], step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const frame = slider && step && figure.frames[slider.active + step];
    if (!frame) return;
    event.preventDefault();
    Plotly.animate(box, [frame.name], {mode: 'immediate', frame: {duration: 0}, transition: {duration: 0}});
  });
}
</script>
{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_priority %}
{% set figure, alt = output.data["application/vnd.plotly.v1+json"], output | get_metadata("alt", "image/jpeg") %}
{% if figure %}
<div class="jp-OutputArea-output" data-mime-type="application/vnd.plotly.v1+json">
<div role="group" aria-label="{{ (alt or figure | figure_title) | e }}"></div>
<script>drawFigure(document.currentScript.previousElementSibling, {{ figure | tojson }});</script>
</div>
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block data_png %}
{% set alt = output | get_metadata("alt", "image/png") %}
{{ super() | replace("<img ", '<img alt="' ~ (alt | e) ~ '" ', 1) if alt else super() }}
{% endblock %}
{% block data_latex %}{{ output.data["text/latex"] | markdown2html }}{% endblock %}
"""


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
        ElementTree.fromstring(equation)  # it passes a stray & or < through as broken markup
    except Exception:  # its errors have no common base class
        return f"<code>{html.escape(tex)}</code>"
    for wrong, right in (("<mi>&#x0007E;</mi>", "<mo>∼</mo>"), ("<mi>&#x000B1;</mi>", "<mo>±</mo>")):
        equation = equation.replace(wrong, right)  # it treats these relations as letters, with no space around them
    return equation


class _Renderer(IPythonRenderer):
    """nbconvert's renderer with equations as MathML and images in HTML embedded."""

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
        return MarkdownWithMath(renderer=renderer).render(source)


def _figure_title(figure) -> str:
    """Return a figure's title as plain text, for figures without alt text (``pio.show`` stores none)."""
    title = figure.get("layout", {}).get("title") or ""
    text = title if isinstance(title, str) else title.get("text") or ""
    return html.unescape(re.sub("<[^>]*>", " ", text)) or "A figure without a description"


def _read(notebook: Path):
    if not notebook.is_file():
        raise ValueError(f"{notebook} is not a file: give the path of a notebook (.ipynb).")
    try:
        book = nbformat.read(notebook, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError):
        raise ValueError(f"{notebook} is not a notebook: give an .ipynb file that Jupyter can open.") from None
    book.metadata.pop("widgets", None)  # widgets need a kernel: show their text instead
    return book


def export_html(notebook: str | Path, out: str | Path | None = None) -> Path:
    """Write a notebook with its stored outputs as one HTML file that opens offline.

    Images in Markdown cells are embedded if they are in the notebook's folder or below; others are not shown.

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
    book = _read(notebook)
    exporter = _Exporter(
        extra_loaders=[DictLoader({"offline.html.j2": TEMPLATE})], template_file="offline.html.j2",
        filters={"figure_title": _figure_title},
    )  # fmt: skip
    place = {"name": notebook.stem, "path": str(notebook.parent)}
    page, _ = exporter.from_notebook_node(book, {"metadata": place, "plotlyjs": get_plotlyjs()})
    with atomic_write(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out
