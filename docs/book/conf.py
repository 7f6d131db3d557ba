"""How Sphinx renders the book; `make.py` puts its pages together and calls it."""

from workbench.version import __version__

project = "The workbench"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "The workbench"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_copy_source = False

# The notebooks were run by make.py, as CI runs them.
nb_execution_mode = "off"
nb_merge_streams = True
# Links of Markdown pages may name a heading.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["**/out/**"]

# Docstrings quote code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
