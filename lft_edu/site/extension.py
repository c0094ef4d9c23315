"""What the website adds to Sphinx: equations as MathML, links that lead out of the site, buttons of a lesson."""

import posixpath
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

import lft_edu

from ..export import mathml
from ..loading.assets import INSTALLED, NOTEBOOKS

# A page may load what lies beside it, from a folder (file:) or a server ('self'), and nothing else.
POLICY = "default-src 'self' file: data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self' file:"


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub, or none: then its addresses are empty."""

    name: str = ""
    branch: str = "main"

    @classmethod
    def parse(cls, address: str) -> "Repository":
        """Read an address such as ``https://github.com/OWNER/NAME`` or ``…/tree/BRANCH``; an empty one means none.

        Raises:
            ValueError: it is not such an address.
        """
        if not address:
            return cls()
        found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/tree/([\w./-]+?))?/?", address)
        if not found:
            raise ValueError(
                f"{address!r} is not a repository on GitHub: give https://github.com/OWNER/NAME, or "
                "https://github.com/OWNER/NAME/tree/BRANCH."
            )
        return cls(found[1], found[2] or cls.branch)

    def source(self, path: str) -> str:
        return self.name and f"https://github.com/{self.name}/blob/{self.branch}/{quote(path)}"

    def colab(self, path: str) -> str:
        return self.name and f"https://colab.research.google.com/github/{self.name}/blob/{self.branch}/{quote(path)}"

    def binder(self, path: str) -> str:
        place = quote(f"lab/tree/{path}", safe="")
        return self.name and f"https://mybinder.org/v2/gh/{self.name}/{quote(self.branch, safe='')}?urlpath={place}"


def address_of(page: str, here: str) -> str:
    """Return a page's address as seen from another page; both are named as Sphinx does, without .html."""
    return posixpath.relpath(page, posixpath.dirname(here)) + ".html"


def setup(app: Sphinx) -> dict:
    """Register everything with Sphinx, which calls this."""
    app.add_config_value("repository", "", "html", [str])
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.add_post_transform(LinksOutside)
    app.connect("config-inited", _staged_files)
    app.connect("missing-reference", _public_name)
    app.connect("autodoc-skip-member", _former_name)
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _staged_files(app: Sphinx, config) -> None:
    config.html_static_path.append(str(app.srcdir / "static"))
    config.html_extra_path.append(str(app.srcdir / "extra"))


def _inline_math(translator, node: nodes.math) -> NoReturn:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block_math(translator, node: nodes.math_block) -> NoReturn:
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


class LinksOutside(SphinxPostTransform):
    """Links to files that are not pages lead to the module's reference or the repository, or become text."""

    default_priority = 8  # before MyST's own resolver, which would warn of them

    def run(self, **kwargs) -> None:
        """Replace the links of a page."""
        for node in list(self.document.findall(addnodes.pending_xref)):
            target = node["reftarget"]
            if node["reftype"] == "myst" and node["refdomain"] != "doc" and not target.startswith("#"):
                here = posixpath.dirname(self.env.docname)
                path = posixpath.normpath(posixpath.join(here, target.partition("#")[0]))
                if INSTALLED or (NOTEBOOKS.parent / path).exists():  # else it is a mistake, of which MyST warns
                    node.replace_self(self._link(path, node.children[0].deepcopy()))

    def _link(self, path: str, text: nodes.Node) -> nodes.Node:
        """A link to a file of the clone."""
        module = re.fullmatch(r"lft_edu/(\w+)(\.py|/.*)?", path)
        named = {"README.md": "docs/index", "notebooks/exercises": "notebooks/exercises/index"}
        page = named.get(path) or (f"reference/{module[1]}" if module else "")
        if inside := page in self.env.all_docs:
            address = address_of(page, self.env.docname)
            if module and path.endswith(".py") and page != "reference/cli":  # that is the help of the commands
                address += "#module-" + path.removesuffix(".py").replace("/", ".")
        else:
            address = Repository.parse(self.config.repository).source(path)
        return nodes.reference("", "", text, refuri=address, internal=inside) if address else text


def _public_name(app: Sphinx, env, node: addnodes.pending_xref, text: nodes.Node) -> nodes.Node | None:
    """Resolve ``lft_edu.fit`` to where it is defined, ``lft_edu.fitting.fit``."""
    public = node["reftarget"].removeprefix("lft_edu.")
    if node.get("refdomain") != "py" or public not in lft_edu._HOME:
        return None
    full = f"lft_edu.{lft_edu._HOME[public]}.{public}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, text)


def _former_name(app: Sphinx, what: str, name: str, member: object, skip: bool, options) -> bool | None:
    """Leave out names of earlier versions, which are assigned the function that replaced them."""
    return True if what == "module" and getattr(member, "__name__", name) != name else None


def _page(app: Sphinx, name: str, template: str, context: dict, doctree) -> None:
    """Give a page its policy, a lesson its buttons, and Plotly to pages that have figures."""
    context["policy"] = POLICY
    if 'class="lft-figure"' in context.get("body", ""):
        app.add_js_file("plotly.min.js", priority=600)
        app.add_js_file("figures.js", priority=601)
        app.add_js_file("keys.js", priority=602)
    if doctree is not None and app.env.doc2path(name).suffix == ".ipynb":
        path, repository = f"{name}.ipynb", Repository.parse(app.config.repository)
        context["lesson"] = {
            "label": "Copy these exercises" if "/exercises/" in path else "Copy this lesson",
            "download": "downloads/" + path.removeprefix("notebooks/"),
            "colab": repository.colab(path),
            "binder": repository.binder(path),
        }
