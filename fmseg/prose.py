"""Prose without typed numbers: find decimals and percentages in Markdown that nothing vouches for.

A number is in order where it is a ``{{ cite id }}`` placeholder (see :mod:`fmseg.cite`), a paper's value with its
certainty later in the same sentence or table row, as in "48.7 (STATED, FreeMask README)", or a parameter; where it is
in code, mathematics, an address or an HTML comment; and where it only names something ("Python 3.11", "Section 2.3").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from fmseg.tables import CERTAINTIES, read_json

_NAMES = (
    r"Python|CUDA|torch|PyTorch|NumPy|mmseg|mmengine|mmcv|timm|diffusers|transformers|DVC|Stable Diffusion"
    r"|CC BY(?:-SA)?|versions?|v|eqs?|equations?|tables?|tab|figures?|figs?|sections?|sec|chapters?|arXiv|§"
)
_CODE = (
    r"(?ms)^[ ]{0,3}(?P<fence>```+|~~~+).*?(?:^[ ]{0,3}(?P=fence)[`~]*[ ]*$|\Z)"
    r"|(?P<ticks>`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)(?P=ticks)(?!`)"
)
_APART = (
    r"(?s)<!--.*?-->",
    r"(?s)\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{(\w+\*?)\}.+?\\end\{\1\}",
    r"(?<![\\$])\$(?![\s$])(?:[^$\n]|\n(?!\s*\n))+?(?<![\s\\])\$(?!\d)",
    r"\]\([^()\s]*(?:\([^()\s]*\))*[^()]*\)|(?m:^[ ]{0,3}\[[^\]\n]+\]:.*$)|<?https?://[^\s<>)]+>?",  # link targets
    r"</?[A-Za-z][^<>]*>",
    r"\{\{\s*cite\s[^{}]*\}\}",
)
_PERCENT = r"\s?(?:%|per ?cent\b)"
_NUMBER = re.compile(rf"(?<![\w.])(?:(?P<version>\d+(?:\.\d+){{2,}})|\d*\.\d+(?:{_PERCENT})?|\d+{_PERCENT})")
_TAG = re.compile(rf"\((?:[^()]*[\s,;:])?(?:{'|'.join(CERTAINTIES)})\b[^()]*\)")
_NAMING = re.compile(
    rf"(?:^|[^\w])(?:{_NAMES})\.?[\s~>=<(:]*(?:\d[\d.]*\s*(?:and|to|or|-|–|,?\s*<)\s*)?$", re.IGNORECASE
)
_SHORT = re.compile(r"\b(?:eqs?|figs?|tabs?|secs?|vs|cf|al|e\.g|i\.e|etc|approx|no)\.", re.IGNORECASE)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\d+(?:\.\d+)*\.?(?=\s|$)", re.MULTILINE)
_BREAK = re.compile(r"(?<=[.!?])[\"')*_\]]*\s+|\n\s*\n|\n(?=\s*(?:[|>]|(?:[-*+]|#+|\d+[.)])\s))")
_GENERATED = re.compile(r"(?s)<!--\s*fmseg:begin\s+(\S+)\s*-->.*?<!--\s*fmseg:end\s+\1\s*-->")


@dataclass(frozen=True)
class Finding:
    """A number that nothing vouches for: where (file, cell), line (from 1), the number, the text around it."""

    where: str
    line: int
    number: str
    around: str

    def __str__(self):
        place = f"{self.where}, line {self.line}" if self.where else f"line {self.line}"
        return (
            f"{place}: {self.number!r} is typed in `{self.around}`. Cite a result ({{{{ cite id }}}}), or give a "
            "paper's value its certainty, say (STATED, FreeMask README)."
        )


def blank(text: str, *patterns: str) -> str:
    """The text with what matches replaced by blanks; lines and columns stay."""
    for pattern in patterns:
        text = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    return text


def blank_code(text: str) -> str:
    """The text with fenced and inline code replaced by blanks."""
    return blank(text, _CODE)


def check_prose(text: str, allowed: Iterable[str] = (), where: str = "") -> list[Finding]:
    """The decimals and percentages of a Markdown text that nothing vouches for.

    Args:
        text: Markdown.
        allowed: parameters, as they may stand in the text: "1.25", "5 %"; :func:`parameters` collects them.
        where: shown with each finding.

    Returns:
        One :class:`Finding` a number, in order; empty where all is well.
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be Markdown text, got {type(text).__name__}.")
    allowed = {_plain(a) for a in allowed}
    masked = _HEADING.sub(lambda m: " " * len(m.group()), blank_code(text))
    masked = blank(masked, *_APART)
    found = []
    for start, sentence in _sentences(masked):
        tags = [m.end() for m in _TAG.finditer(sentence)]
        for number in _NUMBER.finditer(sentence):
            vouched = number["version"] or _plain(number.group()) in allowed
            vouched = vouched or any(number.end() <= end for end in tags)
            vouched = vouched or ("%" not in _plain(number.group()) and _NAMING.search(sentence[: number.start()]))
            if not vouched:
                at = start + number.start()
                line = text.count("\n", 0, at) + 1
                around = " ".join(text[max(start, at - 30) : at + len(number.group()) + 20].split())
                found.append(Finding(where, line, number.group(), around))
    return found


def check_notebook(path, allowed: Iterable[str] = ()) -> list[Finding]:
    """The findings of a notebook's Markdown cells; lines count within the cell. ValueError: it is no notebook."""
    path = Path(path)
    notebook = read_json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path} is no notebook: it has no list of cells.")
    allowed = list(allowed)
    found = []
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            found += check_prose(source(cell), allowed, f"{path.name}, cell {i}")
    return found


def check_all(root, allowed: Iterable[str] | None = None) -> list[Finding]:
    """The findings of ``README.md`` outside generated blocks, of ``report.md``, and of every notebook.

    A generated block stands between ``<!-- fmseg:begin NAME -->`` and ``<!-- fmseg:end NAME -->``.

    Args:
        root: the checkout.
        allowed: as for :func:`check_prose`; the numbers of ``params.yaml`` if None.
    """
    root = Path(root)
    allowed = parameters(root / "params.yaml") if allowed is None else list(allowed)
    found = []
    for name in ("README.md", "report.md"):
        if (root / name).is_file():
            text = blank((root / name).read_text(encoding="utf-8"), _GENERATED.pattern)
            found += check_prose(text, allowed, name)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        found += check_notebook(path, allowed)
    return found


def parameters(path) -> list[str]:
    """The decimals of a YAML file as a text may name them: 0.05 also as "5 %"; none if there is no file."""
    path = Path(path)
    numbers = _leaves(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else []
    return [text for x in numbers for text in (str(x), f"{x:g}", *([f"{100 * x:g} %"] if abs(x) <= 1 else []))]


def source(cell) -> str:
    """A notebook cell's text, which is stored as one string or as a list of lines."""
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def _sentences(text):
    """(start, sentence) of every sentence, heading, list item or table row."""
    breaks = [m.span() for m in _BREAK.finditer(_SHORT.sub(lambda m: m.group().replace(".", "_"), text))]
    starts, ends = [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)]
    return [(start, text[start:end]) for start, end in zip(starts, ends, strict=True)]


def _plain(number):
    return re.sub(r"\s|per ?cent", lambda m: "%" if m.group().startswith("per") else "", str(number))


def _leaves(data):
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [x for item in data for x in _leaves(item)]
    return [data] if isinstance(data, float) else []
