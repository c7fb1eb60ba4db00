"""From class names to prompts, to the tokens that stand for a class, to the grounding head's queries.

Grounded Diffusion, dossier 2.5 and 2.8. The official way, each class in a prompt of its own::

    prompts = query_prompts(names)
    states = encode_prompts(pipe, prompts)                                                  # (O, L, D)
    positions = [token_positions(p, [n], pipe.tokenizer)[0] for p, n in zip(prompts, names)]
    text = class_queries(states, positions)[None]                                           # (1, O, D)

With ``token_positions(prompt, names, tokenizer)`` all classes are found in the picture's own prompt; DAAM needs that
(:mod:`fmseg.daam`). Source: train.py and test.py in github.com/Lipurple/Grounded-Diffusion (5680115).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PREFIX = "a photograph of "
OBJECTS = ("random", "single", "two")


def query_prompts(names: Sequence[str], template: str = PREFIX + "a {}") -> list[str]:
    """A prompt a class, ``template`` with the name for ``{}``.

    Raises:
        ValueError: no list of names, or the template has not exactly one place for a name.

    Differs from the official code: test.py takes "a <second word of the user's prompt> of a <class>", which is not
    what the module was trained with unless that word is "photograph". Pass a template for that.
    """
    _check_names(names)
    if template.count("{}") != 1:
        raise ValueError(f"`template` must have one {{}} for the name; got {template!r}")
    return [template.replace("{}", name) for name in names]


def image_prompt(names: Sequence[str]) -> str:
    """What the picture is painted from: "a photograph of a dog and a cat". The article is always "a", as officially."""
    _check_names(names)
    return PREFIX + " and ".join(f"a {name}" for name in names)


def draw_classes(
    classes: Sequence[str], generator: torch.Generator, objects: str = "random", *, repeated: bool = False
) -> tuple[str, ...]:
    """The one or two classes of a training picture, uniform over ``classes``.

    Args:
        classes: names of the seen classes.
        generator: of the draw, on the CPU.
        objects: "single", "two", or "random": one or two with equal chance.
        repeated: allow the same class twice, as officially ("a dog and a dog", two queries that are equal).

    Raises:
        ValueError: unknown ``objects``, or fewer classes than are to be drawn.
    """
    _check_names(classes)
    if objects not in OBJECTS:
        raise ValueError(f"`objects` must be one of {', '.join(OBJECTS)}; got {objects!r}")
    if objects != "single" and not repeated and len(classes) < 2:
        raise ValueError(f"`classes` must be at least two to draw two different ones; got {list(classes)}")

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    two = objects == "two" or (objects == "random" and below(2) == 1)
    first = below(len(classes))
    if not two:
        return (classes[first],)
    second = below(len(classes) - (not repeated))
    return classes[first], classes[second + (not repeated and second >= first)]


def token_positions(
    prompt: str, names: Sequence[str], tokenizer, *, occurrences: str = "all", repeated: bool = False
) -> list[tuple[int, ...]]:
    """Where in an encoded prompt the tokens of each class name stand.

    A name may be several words, and a word several tokens. It matches whole words only, and a token belongs to one
    class: longer names choose first, so that "dog" is not found in "hot dog" when both are asked for.

    Args:
        prompt: the text that is encoded.
        names: O class names.
        tokenizer: transformers' CLIPTokenizer, or anything with its ``tokenize``, marking the end of a word by
            "</w>", and its ``model_max_length``.
        occurrences: of a name that the prompt says more than once, tokens of "all", or of the "first".
        repeated: allow the same name twice among ``names``; both get the same tokens.

    Returns:
        For each name its positions, ascending, in the sequence with the start token at 0.

    Raises:
        ValueError: a name is not in the prompt, or only within a longer one; more names than the prompt has tokens; two
            names are the same; the prompt is too long for the encoder.

    Differs from the official code: it takes positions 5 to the end of "a photograph of a <class>", which this finds,
    too. DAAM's search (daam/utils.py) takes all occurrences, also those inside words and longer names.
    """
    _check_names(names)
    if occurrences not in ("all", "first"):
        raise ValueError(f"`occurrences` must be 'all' or 'first'; got {occurrences!r}")
    tokens, room = tokenizer.tokenize(prompt), tokenizer.model_max_length - 2
    if len(tokens) > room:
        raise ValueError(f"`prompt` must have at most {room} tokens; got {len(tokens)}: {prompt!r}")
    if len(names) > len(tokens):
        raise ValueError(f"`prompt` has {len(tokens)} tokens for {len(names)} classes; each needs one: {prompt!r}")
    pieces = [tuple(tokenizer.tokenize(name)) for name in names]
    for k, piece in enumerate(pieces):
        if not piece:
            raise ValueError(f"`names` must be words; {names[k]!r} has no tokens")
        if piece in pieces[:k] and not repeated:
            one = names[pieces.index(piece)]
            raise ValueError(
                f"`names` must be different classes; got {one!r} and {names[k]!r}. Their masks would be the same; "
                "repeated=True allows it"
            )
    found: dict[tuple[str, ...], list[range]] = {}
    taken: set[int] = set()
    for piece in sorted(set(pieces), key=lambda p: (-len(p), p)):
        places = [range(start, start + len(piece)) for start in range(len(tokens)) if _matches(tokens, piece, start)]
        found[piece] = [place for place in places if not taken & {*place}]
        taken.update(at for place in found[piece] for at in place)
    for name, piece in zip(names, pieces, strict=True):
        if not found[piece]:
            hint = "only as part of a longer name" if _anywhere(tokens, piece) else "not at all"
            raise ValueError(f"`prompt` must name the class {name!r}; it does {hint}: {prompt!r}")
    chosen = [found[piece] if occurrences == "all" else found[piece][:1] for piece in pieces]
    return [tuple(sorted({at + 1 for place in places for at in place})) for places in chosen]


def class_queries(states: Tensor, positions: Sequence[Sequence[int]]) -> Tensor:
    r"""The text encoder's states averaged over a class's tokens.

    .. math:: E_o = \frac{1}{|T_o|} \sum_{t \in T_o} g(y_o)_t

    Args:
        states: (O, L, D) float, last hidden states of each class's prompt; of one prompt that names all O classes, its
            ``states.expand(O, -1, -1)``.
        positions: O sequences of positions in [0, L), see :func:`token_positions`.

    Returns:
        (O, D), in the dtype of ``states``, connected to them.

    Raises:
        ValueError: not O sequences, one is empty, or a position is outside the text.
    """
    if states.ndim != 3 or len(states) != len(positions) or not states.is_floating_point():
        raise ValueError(
            f"`states` must be floats (O, L, D) with O = {len(positions)}, the number of `positions`; got "
            f"{tuple(states.shape)} of {states.dtype}"
        )
    length, rows = states.shape[1], []
    for k, (state, places) in enumerate(zip(states, positions, strict=True)):
        if not len(places) or not all(0 <= at < length for at in places):
            raise ValueError(f"`positions[{k}]` must be at least one number in [0, {length}); got {list(places)}")
        rows.append(state[list(places)].mean(0))
    return torch.stack(rows) if rows else states.new_empty(0, states.shape[2])


def _matches(tokens: Sequence[str], piece: Sequence[str], start: int) -> bool:
    """Whether the words of ``piece`` begin at ``start``: not inside a word, as "monitor" in "tv-monitor" would."""
    at_word = start == 0 or tokens[start - 1].endswith("</w>")
    return at_word and tuple(tokens[start : start + len(piece)]) == tuple(piece)


def _anywhere(tokens: Sequence[str], piece: Sequence[str]) -> bool:
    return any(_matches(tokens, piece, start) for start in range(len(tokens)))


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`names` must be a list of at least one class name; got {names!r}")
