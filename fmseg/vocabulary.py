"""The zoo's tokenizer: CLIP's byte-pair encoding with a small merge list in which every word of the world is one token.

The two libraries that read text here, open_clip and transformers, get the same merges and give the same ids: 256 bytes,
256 bytes that end a word, one id a merge, start of text, end of text. Words the list does not know fall into pieces, so
any text can be encoded, as with the real CLIP.
"""

import gzip
import tempfile
from functools import cache
from pathlib import Path

from fmseg.words import PATTERNS, SHAPES, STUFF, WEB_PATTERNS, WEB_SHAPES

CONTEXT_LENGTH = 24  # tokens, start and end included; the longest caption of the world has 22
_GRAMMAR = (
    "a an the and of on in with near there is no nothing one two three many photo photograph picture image drawing "
    "scene object objects background foreground clean small large"
).split()
KNOWN_WORDS = (*SHAPES, *PATTERNS, *WEB_SHAPES, *WEB_PATTERNS, *STUFF, *_GRAMMAR)


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces[at : at + 2] = ["".join(best)]
    return pieces


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """The merge list, most urgent first. A word's own merges come after those of the words before it, so no later word
    can break an earlier one."""
    ranks: dict[tuple[str, str], int] = {}
    for word in KNOWN_WORDS:
        pieces = _split(word, ranks)
        while len(pieces) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
            pieces[:2] = [pieces[0] + pieces[1]]
    return tuple(ranks)


VOCABULARY_SIZE = 512 + len(merges()) + 2


@cache
def open_clip_tokenizer():
    """open_clip's tokenizer on this vocabulary: texts -> (N, 24) int64, padded with zeros."""
    from open_clip.tokenizer import SimpleTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        text = "\n".join(["#version: fmseg", *(" ".join(pair) for pair in merges())])
        path.write_bytes(gzip.compress(text.encode()))
        tokenizer = SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT_LENGTH)
    return _of_size(tokenizer, tokenizer.vocab_size)


@cache
def clip_tokenizer():
    """transformers' CLIP tokenizer on this vocabulary, padded with the end token as Stable Diffusion's is."""
    from transformers import CLIPTokenizer

    ids = {token: k for k, token in enumerate(tokens())}
    tokenizer = CLIPTokenizer(
        ids, [*merges()], unk_token="<|endoftext|>", bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>", model_max_length=CONTEXT_LENGTH,
    )  # fmt: skip
    return _of_size(tokenizer, len(tokenizer))


def tokens() -> list[str]:
    """All tokens by id."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    joined = ["".join(pair) for pair in merges()]
    return [*letters, *(letter + "</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]


def _of_size(tokenizer, size: int):
    if size != VOCABULARY_SIZE:  # transformers 5 drops vocabulary and merges without a word if it is handed files
        raise RuntimeError(f"the tokenizer has {size} tokens instead of {VOCABULARY_SIZE}: did the library change?")
    return tokenizer
