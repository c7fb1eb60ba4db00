"""Class names in prompts: the mini tokenizer, and the real CLIP's byte pairs."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmseg  # noqa: F401  (before open_clip: clears its import obstacles)
from fmseg.grounding_text import class_queries, draw_classes, image_prompt, query_prompts, token_positions
from fmseg.vocabulary import clip_tokenizer
from fmseg.words import THINGS

few = settings(max_examples=20, deadline=None)


class RealPieces:
    """The real CLIP's byte-pair encoding, which open_clip's wheel brings along."""

    model_max_length = 77

    def __init__(self):
        from open_clip.tokenizer import SimpleTokenizer

        self._inner = SimpleTokenizer()

    def tokenize(self, text):
        return [self._inner.decoder[k] for k in self._inner.encode(text)]


@pytest.fixture(scope="module")
def real():
    return RealPieces()


def of(prompt, *names, tokenizer=None, **options):
    return token_positions(prompt, names, tokenizer or clip_tokenizer(), **options)


def test_prompts():
    assert query_prompts(["dog", "tvmonitor"]) == ["a photograph of a dog", "a photograph of a tvmonitor"]
    assert query_prompts(["dog"], "a photo of a {}") == ["a photo of a dog"]
    assert image_prompt(["dog"]) == "a photograph of a dog"
    assert image_prompt(["dog", "aeroplane"]) == "a photograph of a dog and a aeroplane", "always the article a"


def test_positions_count_from_the_start_token():
    assert of("a photograph of a striped star and a plain disc", "plain disc", "striped star") == [(9, 10), (5, 6)]
    assert of("a photograph of a Striped STAR", "striped star") == [(5, 6)]


@pytest.mark.parametrize("name", ["dog", "tvmonitor", "diningtable", "pottedplant", "hot dog", "teddy bear"])
def test_finds_what_the_official_slice_takes(real, name):
    """Positions 5 to n, n the number of tokens of "a photograph of a <class>"."""
    prompt = query_prompts([name])[0]
    official = tuple(range(5, len(real.tokenize(prompt)) + 1))
    assert of(prompt, name, tokenizer=real) == [official]


def test_words_that_the_tokenizer_splits(real):
    pieces = real.tokenize("tvmonitor")
    assert len(pieces) > 1
    first, second = of("a photograph of a tvmonitor and a pottedplant", "pottedplant", "tvmonitor", tokenizer=real)
    assert second == tuple(range(5, 5 + len(pieces))) and min(first) == 5 + len(pieces) + 2
    assert of("a photo of a tvmonitor and a monitor", "monitor", tokenizer=real) == [(5 + len(pieces) + 2,)]
    with pytest.raises(ValueError, match="must name the class 'monitor'; it does not at all"):
        of("a photo of a tvmonitor", "monitor", tokenizer=real)


def test_a_name_within_another_is_left_to_it(real):
    prompt = "a photograph of a hot dog and a dog"
    assert of(prompt, "dog", "hot dog", tokenizer=real) == [(9,), (5, 6)]
    assert of(prompt, "dog", tokenizer=real) == [(6, 9)], "nobody asked for the other"
    with pytest.raises(ValueError, match="class 'dog'; it does only as part of a longer name"):
        of("a photograph of a hot dog", "hot dog", "dog", tokenizer=real)


def test_a_name_that_is_said_twice():
    prompt = "a star and a ring and a star"
    assert of(prompt, "star", "ring") == [(2, 8), (5,)]
    assert of(prompt, "star", occurrences="first") == [(2,)]
    assert of("star star star", "star star") == [(1, 2, 3)]


@few
@given(st.lists(st.sampled_from(THINGS), min_size=1, max_size=4, unique=True))
def test_every_class_has_its_own_tokens_whatever_their_order(names):
    prompt, tokenizer = image_prompt(names), clip_tokenizer()
    found = of(prompt, *names)
    tokens = ["<start>", *tokenizer.tokenize(prompt)]
    assert [[tokens[at] for at in places] for places in found] == [tokenizer.tokenize(name) for name in names]
    assert len({at for places in found for at in places}) == sum(map(len, found))
    assert of(prompt, *names[::-1]) == found[::-1]


def test_positions_errors():
    for match, prompt, names, options in (
        ("must name the class 'ring'; it does not at all: 'a star'", "a star", ["ring"], {}),
        ("has 2 tokens for 3 classes; each needs one", "a star", ["star", "ring", "disc"], {}),
        ("different classes; got 'star' and 'Star'.*repeated=True", "a star and a star", ["star", "Star"], {}),
        ("at most 22 tokens; got 23", "star " * 23, ["star"], {}),
        ("at least one class name; got \\[\\]", "a star", [], {}),
        ("'  ' has no tokens", "a star", ["  "], {}),
        ("`occurrences` must be", "a star", ["star"], {"occurrences": "last"}),
    ):
        with pytest.raises(ValueError, match=match):
            token_positions(prompt, names, clip_tokenizer(), **options)
    with pytest.raises(ValueError, match="a list of at least one class name; got 'star'"):
        token_positions("a star", "star", clip_tokenizer())
    assert of("a star and a star", "star", "star", repeated=True) == [(2, 5), (2, 5)]
    with pytest.raises(ValueError, match="`template` must have one {}"):
        query_prompts(["star"], "a star")


def test_queries_are_means_over_tokens():
    states = torch.arange(24.0, dtype=torch.float64).reshape(2, 4, 3).requires_grad_()
    found = class_queries(states, [(1,), (0, 2)])
    assert torch.equal(found, torch.tensor([[3.0, 4, 5], [15, 16, 17]], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda s: class_queries(s, [(1, 2, 3), (0,)]), states)
    one = class_queries(states[:1].expand(2, -1, -1), [(1,), (2,)])
    assert torch.equal(one, states[0, 1:3])
    for match, positions in (
        ("with O = 1, the number of `positions`; got \\(2, 4, 3\\)", [(1,)]),
        ("`positions\\[1\\]` must be at least one number in \\[0, 4\\); got \\[\\]", [(1,), ()]),
        ("`positions\\[0\\]` must be .* got \\[4\\]", [(4,), (0,)]),
    ):
        with pytest.raises(ValueError, match=match):
            class_queries(states, positions)


def test_drawn_classes():
    generator = torch.Generator().manual_seed(0)
    names = ("dog", "cat", "bus")
    drawn = [draw_classes(names, generator) for _ in range(600)]
    count = Counter(map(len, drawn))
    assert abs(count[1] - count[2]) < 100
    pairs = Counter(d for d in drawn if len(d) == 2)
    assert len(pairs) == 6 and min(pairs.values()) > 25 and all(a != b for a, b in pairs)
    assert {draw_classes(names, generator, "two", repeated=True) for _ in range(200)} >= {(n, n) for n in names}
    assert {len(draw_classes(names, generator, "single")) for _ in range(9)} == {1}
    again = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert draw_classes(names, again[0]) == draw_classes(names, again[1])
    with pytest.raises(ValueError, match="`objects` must be one of random, single, two; got 'one'"):
        draw_classes(names, generator, "one")
    with pytest.raises(ValueError, match="at least two to draw two different ones; got \\['dog'\\]"):
        draw_classes(["dog"], generator)
    assert draw_classes(["dog"], generator, "two", repeated=True) == ("dog", "dog")
