"""The pictures of the gallery: every figure and animation that an example's block has assigned to a name."""

from typing import Any

from matplotlib.animation import Animation
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_WRITTEN = "_written_by_the_gallery"


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Writes what is new in a block, and returns the text that shows it."""
    del block
    paths = []
    for value in list(block_vars["example_globals"].values()):
        if not isinstance(value, Figure | Animation) or hasattr(value, _WRITTEN):
            continue
        setattr(value, _WRITTEN, True)
        path = str(next(block_vars["image_path_iterator"]))
        if isinstance(value, Animation):
            path = path.removesuffix(".png") + ".gif"
            value.save(path, writer="pillow", dpi=90)
        else:
            value.savefig(path, dpi=110)
        paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])
