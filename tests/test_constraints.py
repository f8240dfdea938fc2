"""Constraints hold by construction: in sampling, greedily and in beams; sonnet form and templates over many texts."""

import itertools

import pytest
import torch

from config import DecodingSettings
from datasets import load_tokenizer
from decoding.constraint import constrain, token_texts
from decoding.form import END_CHARS, MAX_CHARS, MIN_CHARS, LineTokens, SonnetForm
from decoding.prosody import measure_form, rhymes, rhyming_pairs, syllables
from decoding.template import (
    TAG_SETS,
    Lexicon,
    format_templates,
    load_tagger,
    load_templates,
    parse_template,
    split_words,
    tag_line,
    template_of,
)
from decoding.template_constraint import TemplateConstraint, TemplateWords, build_trie
from errors import UserError
from models.gpt2 import GPT2Model
from tests.conftest import make_hugging_face_gpt2
from tests.test_decoding import some_prompts
from tests.writing import search, write

MINI = "data/gpt2-mini"


class Alternating:
    """A toy constraint: even and odd tokens in turn, six of them. The state is the number of tokens."""

    size = 30

    def start(self, index, budget):
        return 0

    def allowed(self, state):
        return torch.arange(self.size) % 2 == state % 2

    def advance(self, state, token):
        assert token % 2 == state % 2
        return state + 1

    def done(self, state):
        return state == 6


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    theirs = make_hugging_face_gpt2(vocab_size=30, eos_token_id=29, bos_token_id=29)
    folder = tmp_path_factory.mktemp("small")
    theirs.save_pretrained(folder)
    return GPT2Model.from_pretrained(str(folder)).eval()


@pytest.fixture(scope="module")
def mini_tokenizer():
    return load_tokenizer(MINI)


@torch.no_grad()
def test_greedy_takes_the_best_allowed_token(small):
    prompts = [[3, 1, 4], [1, 5]]
    found = write(small, prompts, DecodingSettings(temperature=0, max_new_tokens=10), constraint=Alternating())
    for prompt, ids in zip(prompts, found, strict=True):
        expected = list(prompt)
        for step in range(6):  # by hand, without a cache
            logits = small.hidden_state_to_token(small(torch.tensor([expected]))["last_hidden_state"])[0, -1]
            logits[(step + 1) % 2 :: 2] = float("-inf")
            expected.append(logits.argmax().item())
        assert ids == expected[len(prompt) :]


@torch.no_grad()
def test_enough_beams_find_the_best_of_all_allowed_sequences(small):
    """15^3 sequences of even, odd, even tokens, each scored alone."""
    prompt, settings = [3, 1, 4], DecodingSettings(max_new_tokens=3, beams=225, length_penalty=0.0)
    found = search(small, [prompt], settings, constraint=Alternating())[0]
    texts = torch.tensor(list(itertools.product(range(0, 30, 2), range(1, 30, 2), range(0, 30, 2))))
    ids = torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], dim=1)
    scores = small.hidden_state_to_token(small(ids[:, :-1])["last_hidden_state"])[:, 2:].log_softmax(-1)
    scores = scores.gather(2, texts[:, :, None]).sum(dim=(1, 2))
    best = scores.topk(20)
    assert [ids for ids, _ in found[:20]] == texts[best.indices].tolist()
    torch.testing.assert_close(torch.tensor([score for _, score in found[:20]]), best.values, atol=1e-5, rtol=1e-5)


def test_a_row_that_filters_leave_nothing_takes_the_unfiltered_scores():
    scores, filtered = torch.randn(2, 30), torch.full((2, 30), float("-inf"))
    filtered[1, 3] = 1.0
    constrained = constrain(filtered, Alternating(), [0, 1], scores)
    torch.testing.assert_close(constrained[0, ::2], scores[0, ::2])
    assert constrained[0, 1::2].isneginf().all()
    assert constrained[1].isfinite().nonzero().tolist() == [[3]]
    assert constrain(scores, Alternating(), [None, None]).equal(scores)


def test_damaged_weights_are_said_and_do_not_hang(gpt2):
    with torch.no_grad():
        gpt2.word_embedding.weight[7] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        write(gpt2, some_prompts(2), DecodingSettings())


def test_token_texts(mini_tokenizer):
    texts = token_texts(mini_tokenizer, 9000)
    assert len(texts) == 9000 and texts[3919] == "no" and not any(texts[8960:])
    assert "" in texts[:256]  # bytes that are no character alone
    ids = mini_tokenizer.encode("Shall I compare thee,\nto a summer's day?").ids
    assert "".join(texts[token] for token in ids) == "Shall I compare thee,\nto a summer's day?"


# ---------------------------------------------------------------------------------------------------------------------
# The form of a sonnet
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model():
    """A random model with the mini model's vocabulary."""
    theirs = make_hugging_face_gpt2(vocab_size=8960, eos_token_id=8959, bos_token_id=8959)
    return theirs


@pytest.fixture(scope="module")
def writer_model(random_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    random_model.save_pretrained(folder)
    return GPT2Model.from_pretrained(str(folder)).eval()


@pytest.mark.parametrize("rows", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_sampled_sonnets_have_their_form(writer_model, mini_tokenizer, rows):
    prompt = "Shall I compare thee to a summer's day?\nThou art\nRough winds do shake\n"
    ids, lines = mini_tokenizer.encode(prompt).ids, ([11, 1, 2, 5, 14] * rows)[:rows]
    form = SonnetForm(LineTokens(mini_tokenizer, 8960, 8959), lines)
    settings = DecodingSettings(max_new_tokens=400)
    found = write(writer_model, [ids] * rows, settings, 1, end_of_text=8959, constraint=form)
    for wanted, new_ids in zip(lines, found, strict=True):
        written = mini_tokenizer.decode(new_ids).removesuffix("\n").split("\n")
        assert len(written) == wanted
        share = (256 - len(ids)) // wanted
        for line in written:
            assert line.strip() and len(line.splitlines()) == 1 and len(line) <= MAX_CHARS
            assert len(line) >= MIN_CHARS or len(mini_tokenizer.encode(line).ids) >= share - 4  # cut: no tokens left
            assert " " not in line[END_CHARS:].lstrip()
    assert len({tuple(new_ids) for new_ids in found}) == rows


def test_the_form_holds_however_few_tokens_there_are(writer_model, mini_tokenizer):
    ids, form = mini_tokenizer.encode("O\n").ids, SonnetForm(LineTokens(mini_tokenizer, 8960, 8959), [11] * 20)
    found = write(writer_model, [ids] * 20, DecodingSettings(max_new_tokens=22), 1, 8959, constraint=form)
    for new_ids in found:
        assert len(mini_tokenizer.decode(new_ids).split()) >= 11 and mini_tokenizer.decode(new_ids).count("\n") >= 10
    with pytest.raises(UserError, match="11 lines do not fit into 21 tokens"):
        write(writer_model, [ids], DecodingSettings(max_new_tokens=21), 1, 8959, constraint=form)


def test_the_form_holds_in_beams_and_with_filters(writer_model, mini_tokenizer):
    ids, form = mini_tokenizer.encode("O\n").ids, SonnetForm(LineTokens(mini_tokenizer, 8960, 8959), [3, 4])
    settings = DecodingSettings(max_new_tokens=90, beams=3, no_repeat_ngram=1)
    for lines, texts in zip((3, 4), search(writer_model, [ids] * 2, settings, 8959, constraint=form), strict=True):
        for new_ids, _ in texts:
            assert len(mini_tokenizer.decode(new_ids).removesuffix("\n").split("\n")) == lines


def test_syllables_and_rhymes():
    pronouncing = pytest.importorskip("pronouncing")
    assert syllables("Shall I compare thee to a summer's day?", pronouncing) == 10
    assert syllables("blindle zorped", pronouncing) == 4  # guessed: blin-dle zor-ped
    assert rhymes("day", "may", pronouncing) and not rhymes("day", "night", pronouncing)
    assert rhymes("day", "day", pronouncing) is False and rhymes("day", "zorped", pronouncing) is None
    assert rhyming_pairs() == [(0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 13)]


def test_measure_form_against_a_count_by_hand():
    pronouncing = pytest.importorskip("pronouncing")
    ends = ["day", "night", "way", "light", "tree", "go", "sea", "zorped", "hat", "cold", "cat", "warm", "end", "end"]
    text = "\n".join(f"one two three, {end}" for end in ends)  # 4 syllables each, but for zorped
    figures = measure_form([text], 3, pronouncing)
    assert figures["syllables a line"] == pytest.approx((10 * 4 + 5) / 11) and figures["10 syllables"] == 0
    assert figures["rhymes known"] == pytest.approx(5 / 6)  # go with zorped is unknown; the first pair was given
    assert figures["rhymes"] == pytest.approx(3 / 5)  # night-light, tree-sea, hat-cat; not cold-warm, not end-end
    assert measure_form([""], 3, pronouncing)["rhymes"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Templates
# ---------------------------------------------------------------------------------------------------------------------

LINES = [
    "The reservoir drew down. The steeple tip",
    "And people drove from miles around, to slip",
    "My mistress' eyes are nothing like the sun;",
    'I said, "The night\'s long theft is sweet to see!"',
]


@pytest.fixture(scope="module")
def lexicon():
    pytest.importorskip("textblob")
    return Lexicon(["\n".join(LINES)], *load_tagger())


def test_splitting_keeps_every_character():
    for line in LINES:
        pieces = split_words(line)
        joined = "".join(("" if glued or not place else " ") + text for place, (text, glued) in enumerate(pieces))
        assert joined == line
    assert split_words("o'er the night's self-same") == [
        ("o'er", False),
        ("the", False),
        ("night", False),
        ("'s", True),
        ("self-same", False),
    ]


def test_templates_of_lines(lexicon):
    tag_words, _ = load_tagger()
    tagged = tag_line("The night's long, sweet sun.", tag_words)
    assert template_of(tagged) == "DT NN +'s JJ +, JJ NN +."
    assert template_of(tagged, "universal") == "DET NOUN +'s ADJ +, ADJ NOUN +."
    assert template_of(tagged, "content") == "FUNCTION CONTENT +'s CONTENT +, CONTENT CONTENT +."
    assert template_of(tagged, "word") == "WORD WORD +'s WORD +, WORD WORD +."
    assert sum(lexicon.templates["penn"].values()) == len(LINES)
    for line in LINES:
        for tag_set in TAG_SETS:
            assert lexicon.admits(template_of(tag_line(line, tag_words), tag_set), line)
    assert not lexicon.admits("DT NN", "the of") and not lexicon.admits("DT NN +,", "the sun")


def test_template_files_round_trip_and_say_what_is_wrong(tmp_path):
    templates = {"DT NN +,": 3, "PRP VBZ": 1}
    path = tmp_path / "templates.txt"
    path.write_text(format_templates(templates), encoding="utf-8")
    assert load_templates(path) == templates
    for text, message in (("DT NN\n", "line 1"), ("# nothing\n", "no template"), ("0\tDT\n", "line 1")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_templates(path)


def test_capitals_begin_lines_and_sentences():
    places = parse_template("DT NN +. PRP VBZ +, CC VBZ")
    assert [place.capital for place in places] == [True, False, False, True, False, False, False, False]
    assert [place.glued for place in places] == [True, False, True, False, False, True, False, False]


def test_tries():
    trie = build_trie([(1, 2, 3), (1,), (4, 5)])
    assert set(trie.children) == {1, 4} and trie.tail == 1 and not trie.terminal
    assert trie.children[1].terminal and trie.children[1].tail == 0 and trie.children[1].children[2].tail == 1
    assert trie.children[4].tail == 1


LETTERS = " \nabcdA"


class Words:
    """A lexicon of given words, and a tokenizer of letters for it."""

    def __init__(self, **words):
        self.words, self.seen, self.tags = words, {w for some in words.values() for w in some}, {}

    def fitting(self, tag):
        return self.words.get(tag, [tag])

    def encode(self, text):
        return type("Encoding", (), {"ids": [LETTERS.index(letter) for letter in text]})

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(LETTERS[token] for token in ids)


@pytest.mark.parametrize("budget", [6, 7, 8, 9, 12])
def test_exactly_the_texts_of_a_template_are_allowed(budget):
    """All texts over a six-letter vocabulary, against a search by hand. A glued word can be read in two ways."""
    words = Words(X=["a", "ab", "abc"], Y=["b", "bc", "cd"])
    constraint = TemplateConstraint(TemplateWords(words, 7, None, words, {"X +Y X": 1}), [1], ["s"])
    texts = [
        f"{a}{b} {c}\n".capitalize()
        for a, b, c in itertools.product(words.words["X"], words.words["Y"], words.words["X"])
    ]
    found, stack = set(), [(constraint.start(0, budget), "")]
    while stack:
        state, text = stack.pop()
        if constraint.done(state):
            found.add(text)
            continue
        tokens = constraint.allowed(state).nonzero().flatten().tolist()
        assert tokens, f"nothing may follow {text!r}"
        stack += [(constraint.advance(state, token), text + LETTERS[token]) for token in tokens]
    assert found == {text for text in texts if len(text) <= budget}


@pytest.mark.parametrize("rows", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tag_set", ["penn", "universal", "content", "word"])
def test_sampled_lines_fit_their_templates(writer_model, mini_tokenizer, lexicon, tag_set, rows):
    prompt = mini_tokenizer.encode("Shall I compare thee to a summer's day?\n").ids
    lines = [11] * rows
    seeds = [f"5-{row}" for row in range(rows)]
    tables = TemplateWords(mini_tokenizer, 8960, 8959, lexicon, lexicon.templates[tag_set])
    constraint = TemplateConstraint(tables, lines, seeds)
    found = write(writer_model, [prompt] * rows, DecodingSettings(), 5, end_of_text=8959, constraint=constraint)
    for index, ids in enumerate(found):
        written = mini_tokenizer.decode(ids).removesuffix("\n").split("\n")
        assert len(written) == 11
        for template, line in zip(constraint.chosen[index], written, strict=True):
            assert lexicon.admits(template, line), (template, line)


def test_a_tag_without_words_backs_off(lexicon):
    assert lexicon.fitting("NNPS") and lexicon.fitting("XYZ")  # no such word: any noun, any word
    assert "sun" in lexicon.fitting("NN") and "of" not in lexicon.fitting("NN") and lexicon.fitting(";") == {";"}


def test_templates_that_do_not_fit_are_shortened_or_refused(writer_model, mini_tokenizer, lexicon):
    templates = {"DT NN": 1, " ".join(["NN"] * 40): 1000}

    constraint = TemplateConstraint(TemplateWords(mini_tokenizer, 8960, 8959, lexicon, templates), [5], ["s"])
    constraint.start(0, 60)
    assert constraint.chosen[0].count("DT NN") == 4
    constraint.start(0, 15)
    assert constraint.chosen[0] == ["DT NN"] * 5
    with pytest.raises(UserError, match="need 15 tokens, there is room for 14"):
        constraint.start(0, 14)
