"""Pieces of HTML that several pages of the book share."""

import html
from pathlib import Path

_FENCE = "`" * 12  # longer than any fence inside


def raw(text: str) -> str:
    """HTML as Markdown takes it over unread, blank lines and backticks included."""
    return f"{_FENCE}{{raw}} html\n{text}\n{_FENCE}\n"


def link(where: str, words: str, code: bool = False) -> str:
    """A link as HTML; ``words`` is plain text, shown as code if ``code``."""
    shown = f"<code>{html.escape(words)}</code>" if code else html.escape(words)
    return f'<a href="{html.escape(where, quote=True)}">{shown}</a>'


def figure(path: str, alt: str, up: str) -> str:
    """A picture with a link to the numbers that it is drawn from.

    Args:
        path: of the PNG, below the book's root; its data lie beside it as csv.
        alt: what it shows, for who cannot see it.
        up: from the page to the book's root, "" or "../".
    """
    where = html.escape(up + path, quote=True)
    return (
        f'<figure class="fmseg-figure"><a href="{where}"><img src="{where}" alt="{html.escape(alt, quote=True)}" '
        f'loading="lazy"></a><figcaption><a href="{where.removesuffix(".png")}.csv">{html.escape(words(path))}: data '
        "(csv)</a></figcaption></figure>"
    )


def words(path: str) -> str:
    """What a figure's file is called, in words."""
    return Path(path).stem.replace("-", " ")
