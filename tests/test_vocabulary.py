"""One vocabulary in two libraries: the same ids, one token a word."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg import vocabulary
from fmseg.datasets import DRAWS, draw_set
from fmseg.vocabulary import CONTEXT_LENGTH, KNOWN_WORDS, VOCABULARY_SIZE, clip_tokenizer, open_clip_tokenizer
from fmseg.words import STUFF, WEB_THINGS, article
from fmseg.zoo_clip import FORMS

START, END = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
THERE = open_clip_tokenizer(), clip_tokenizer()


def ids(text):
    """(of open_clip, of transformers), without padding."""
    padded = THERE[0]([text])[0].tolist()
    return padded[: padded.index(END) + 1], THERE[1](text, truncation=True, max_length=CONTEXT_LENGTH).input_ids


def test_every_known_word_is_one_token():
    seen = set()
    for word in KNOWN_WORDS:
        one, other = ids(word)
        assert one == other and len(one) == 3, word
        assert THERE[1].tokenize(word) == [f"{word}</w>"]
        seen.add(one[1])
    assert len(seen) == len(set(KNOWN_WORDS))


@pytest.mark.parametrize("draw", DRAWS)
def test_captions_of_every_draw_have_the_same_ids_and_can_be_read_back(draw):
    for caption in draw_set(draw, "val", 25, size=32).captions:
        one, other = ids(caption)
        assert one == other and one[0] == START and one[-1] == END
        assert len(one) == len(caption.split()) + 2, "one token a word"
        assert THERE[1].decode(other, skip_special_tokens=True) == caption


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789.,!-", min_size=1, max_size=8), max_size=6))
def test_unknown_words_fall_into_the_same_pieces(words):
    one, other = ids(" ".join(words))
    assert one == other and len(one) <= CONTEXT_LENGTH


def test_letters_that_are_not_english_and_capitals():
    for text in ("Un café noir", "A PHOTO of a Star", "eine große Blüte", "星", "it's a dog's", ""):
        assert ids(text)[0] == ids(text)[1], text
    assert ids("A PHOTO")[0] == ids("a photo")[0]


def test_padding_is_zeros_for_clip_and_the_end_for_stable_diffusion():
    assert THERE[0](["a"])[0].tolist()[3:] == [0] * (CONTEXT_LENGTH - 3)
    padded = THERE[1]("a", padding="max_length", max_length=CONTEXT_LENGTH).input_ids
    assert padded[2:] == [END] * (CONTEXT_LENGTH - 2)


def test_a_library_that_loses_the_vocabulary_is_met_with_an_error():
    assert len(THERE[1]) == THERE[0].vocab_size == len(vocabulary.tokens()) == VOCABULARY_SIZE
    assert len(set(vocabulary.tokens())) == VOCABULARY_SIZE
    with pytest.raises(RuntimeError, match=f"has 3 tokens instead of {VOCABULARY_SIZE}: did the library change"):
        vocabulary._of_size(THERE[1], 3)


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
    from transformers import CLIPTokenizer

    THERE[1].save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(again) == VOCABULARY_SIZE and again.model_max_length == CONTEXT_LENGTH
    for text in ("a photo of a zigzag hourglass on sand", "a quixotic zebra", ""):
        assert again(text).input_ids == THERE[1](text).input_ids
    assert again.pad_token_id == again.eos_token_id == END and again.bos_token_id == START


def test_the_longest_sentence_fits():
    web = DRAWS["web"].statistics
    for draw in DRAWS.values():
        noisy = draw.name in ("web", "icon")
        most = len(draw.statistics.counts) + noisy  # and one that is not there
        things = " and ".join(article(WEB_THINGS[5 * k]) for k in range(most))
        assert len(ids(f"a photo of {things} on {STUFF[0]}")[0]) <= 22
    things = " and ".join(article(WEB_THINGS[5 * k]) for k in range(len(web.counts) + 1))
    for form in FORMS:
        sentence = form.format(f"{things} on {STUFF[0]}")
        one, other = ids(sentence)
        assert one == other and len(one) == len(sentence.split()) + 2 <= CONTEXT_LENGTH, "nothing was cut"
