"""Link words of the lessons to the glossary: a word in bold that the glossary explains leads to its explanation."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from .extension import address_of

PAGE = "docs/glossary"


def setup(app: Sphinx) -> dict:
    """Register with Sphinx, which calls this."""
    app.connect("doctree-read", _collect)
    app.add_post_transform(GlossaryLinks)
    return {"parallel_read_safe": False}


def spelling(words: str) -> str:
    """Return words as they are compared: without case, hyphens, a plural and what is in parentheses.

    >>> spelling("Midpoint-Methods (solvers):")
    'midpoint method'
    """
    words = re.sub(r"\(.*?\)", "", words).strip(" .:*").casefold().replace("-", " ")
    return re.sub(r"(?<=[a-rt-z])s$", "", words)


def spellings(heading: str) -> set[str]:
    """Return what a heading of the glossary explains: all of it, its parts, and what is in parentheses.

    >>> sorted(spellings("Euler, midpoint methods (solvers)"))
    ['euler', 'euler, midpoint method', 'midpoint method', 'solver']
    """
    return {spelling(words) for words in [heading, *re.split(r"\s*[/,;()]\s*|\s+or\s+", heading)]} - {""}


def _collect(app: Sphinx, doctree: nodes.document) -> None:
    """Remember the terms of the glossary: the headings of its innermost sections."""
    if app.env.docname != PAGE:
        return
    terms: dict[str, str] = {}
    for section in doctree.findall(nodes.section):
        if not list(section.findall(nodes.section))[1:]:  # the first is itself
            for words in spellings(section.next_node(nodes.title).astext()):
                terms.setdefault(words, section["ids"][0])
    app.env.metadata[PAGE]["terms"] = terms


class GlossaryLinks(SphinxPostTransform):
    """Make links of the bold words that the glossary explains."""

    default_priority = 20

    def run(self, **kwargs) -> None:
        """Replace the bold words of a page."""
        terms = self.env.metadata[PAGE].get("terms", {})
        if not self.env.docname.startswith("notebooks/"):
            return
        for node in list(self.document.findall(nodes.strong)):
            place = terms.get(spelling(node.astext()))
            if place and not isinstance(node.parent, nodes.reference):
                address = f"{address_of(PAGE, self.env.docname)}#{place}"
                link = nodes.reference("", "", internal=True, refuri=address, classes=["glossary-link"])
                node.replace_self(link)
                link += node
