"""The vocabulary of the mini world: which words make its classes, and who knows them.

40 thing classes are 10 shapes x 4 patterns; 8 stuff classes are textures. Six further shapes and two further patterns
occur in the `web` draw only: foundation models know the words, no mask of them is ever used for training.
"""

SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart", "bar", "flower")
PATTERNS = ("plain", "striped", "checked", "dotted")
WEB_SHAPES = ("arrow", "drop", "house", "hourglass", "arch", "bolt")
WEB_PATTERNS = ("zigzag", "netted")
STUFF = ("sky", "sea", "grass", "sand", "brick", "rock", "snow", "wood")

THINGS = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
WEB_THINGS = tuple(f"{pattern} {shape}" for shape in SHAPES + WEB_SHAPES for pattern in PATTERNS + WEB_PATTERNS)

# VOC's role: two patterns of every shape, each pattern with five shapes,
# so that no pattern is tied to a group of shapes. The first ten are the old classes of 10-10, one of each shape.
VOC_THINGS = (
    "plain disc", "checked ring", "striped square", "dotted triangle", "plain star",
    "checked cross", "striped crescent", "dotted heart", "plain bar", "striped flower",
    "striped disc", "dotted ring", "plain square", "checked triangle", "dotted star",
    "striped cross", "plain crescent", "checked heart", "checked bar", "dotted flower",
)  # fmt: skip
BASE_THINGS = tuple(name for name in THINGS if name not in VOC_THINGS)  # COCO-to-VOC's base classes


def find(name: str, names: tuple[str, ...], what: str = "class") -> int:
    """Index of ``name`` in ``names``.

    Raises:
        ValueError: unknown name; the message lists the nearest ones.
    """
    if name in names:
        return names.index(name)
    import difflib

    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(repr(n) for n in near)}?" if near else f" Known: {', '.join(names[:12])}, ..."
    raise ValueError(f"`{what}` must be one of {len(names)} known names; got {name!r}.{hint}")


def article(name: str) -> str:
    """The name with its indefinite article, as prompts and captions use it: 'an arch', 'a striped star'."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def kind_of_novelty(name: str, seen: tuple[str, ...]) -> str:
    """How new a class name is to somebody who has seen ``seen``.

    Returns:
        'seen', 'new combination', 'one new word' or 'both words new'.
    """
    if name in seen:
        return "seen"
    pattern, shape = name.split()
    known = (pattern in {n.split()[0] for n in seen}) + (shape in {n.split()[1] for n in seen})
    return ("both words new", "one new word", "new combination")[known]
