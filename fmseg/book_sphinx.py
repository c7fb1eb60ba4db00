"""What the book asks of Sphinx: its configuration, formulas as MathML made at build time, anchors at code cells.

Nothing that a page loads comes from elsewhere: no MathJax, no widget scripts, no search that fetches pages (which a
browser refuses for files).
"""

from pathlib import Path
from typing import Any

from fmseg._shims import without

CONFIG = {
    "project": "fmseg",
    "html_title": "fmseg",
    "extensions": ["myst_nb", "fmseg.book_sphinx"],
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "use_download_button": False,
        "use_fullscreen_button": False,
        "navbar_persistent": [],  # the side bar has the search
        "home_page_in_toc": True,
        "show_navbar_depth": 1,
        "show_toc_level": 2,
        "navigation_with_keys": False,
        "footer_content_items": "",
    },
    "html_context": {"default_mode": "auto"},  # light or dark as the reader's system is
    "html_math_renderer": "mathml",
    "html_css_files": ["book.css"],
    "html_js_files": ["ledger.js"],
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_search_summary": False,  # it fetches the pages found
    "html_last_updated_fmt": None,
    "html_use_index": False,
    "smartquotes": False,
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_render_markdown_format": "myst",
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath"],
    "language": "en",
}


def build(source: Path, to: Path, work: Path, static: Path, extra: Path) -> list[str]:
    """Build a site.

    Args:
        source: folder of Markdown files and notebooks, with index.md.
        to: folder for the site.
        work: folder for what is needed on the way.
        static: folder of style sheets and scripts. extra: folder whose content goes to the site as it is.

    Returns:
        Sphinx's warnings, one a line; empty where all is well.

    Raises:
        ValueError: a formula cannot be made MathML. RuntimeError: Sphinx gave up; says why.
    """
    import io

    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace

    nocolor()
    warnings = io.StringIO()
    config = CONFIG | {"html_static_path": [str(static)], "html_extra_path": [str(extra)]}
    try:
        with docutils_namespace(), without("rfc3987_syntax"):  # jsonschema's check of addresses: more than a second
            app = Sphinx(source, None, to, work, "html", config, status=None, warning=warnings, freshenv=True)
            app.build()
    except SphinxError as error:
        raise RuntimeError(f"Sphinx could not build the book: {error}") from error
    return [line for line in warnings.getvalue().splitlines() if line.strip()]


def mathml(latex: str, display: str) -> str:
    """A formula as MathML; ``display`` is 'inline' or 'block'.

    Raises:
        ValueError: it cannot be converted; shows the formula.
    """
    from latex2mathml.converter import convert

    try:
        return convert(latex, display=display)
    except Exception as error:  # of its own kinds, without a common base
        raise ValueError(f"this formula cannot be made MathML ({type(error).__name__}): {latex}") from error


def setup(app) -> dict[str, Any]:
    """Sphinx's way to load this module as an extension."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("doctree-read", _name_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator, node):
    from docutils import nodes

    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator, node):
    from docutils import nodes

    translator.body.append(f'<div class="math notranslate">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def _name_cells(app, document):
    """Give each code cell the id that :func:`fmseg.book_chapters.notebook` put into its metadata."""
    from docutils import nodes

    for node in document.findall(nodes.container):
        if name := (node.get("cell_metadata") or {}).get("anchor"):
            node["ids"].append(name)
