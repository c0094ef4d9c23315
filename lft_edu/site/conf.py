"""Settings of the course's website for Sphinx. ``lft_edu.site.build`` stages the pages and runs Sphinx with them."""

import lft_edu

project = "Latent Flow Transformers"
author = "the authors of lft_edu"
version = release = lft_edu.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "lft_edu.site.extension", "lft_edu.site.glossary"]
root_doc = "docs/index"
exclude_patterns = ["extra", "static"]  # staged for html_extra_path and html_static_path, no pages
templates_path = ["templates"]

nb_execution_mode = "off"  # lessons are stored with their outputs
nb_render_markdown_format = "myst"
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is documented twice is not an error
python_display_short_literal_types = True

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = html_show_copyright = False
