"""How the site is built: `sphinx-build -W docs site`, without a network."""

import sys
from pathlib import Path

import jax

import funcopt

jax.config.update("jax_num_cpu_devices", 8)  # for the picture of a mesh, before anything is computed
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "funcopt"
author = "the funcopt authors"
project_copyright = author
version = release = funcopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "reference",
]
exclude_patterns = ["_extensions", "**/GALLERY_HEADER*"]
root_doc = "index"

myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the ranges of arguments are in the reference's own tables
autodoc_class_signature = "separated"
napoleon_use_rtype = False
napoleon_use_admonition_for_examples = False
add_module_names = False

html_theme = "furo"
html_title = f"funcopt {release}"
html_static_path = ["_static"]
html_css_files = ["funcopt.css"]
html_copy_source = False
html_show_sphinx = False

sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"plot_",
    "image_scrapers": ["gallery_images.scrape"],
    "matplotlib_animations": False,
    "reset_modules": (),
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 0,
    "abort_on_example_error": True,
    "plot_gallery": True,
    "remove_config_comments": True,
}
