"""Constrained decoding against enumeration."""

import itertools

import pytest
import torch

from config import DecodingSettings
from decoding.constraint import Constraint, constrain, token_texts
from errors import UserError
from models.gpt2 import GPT2Model
from tests.helpers import MINI_VOCABULARY
from tests.tiny import make_hugging_face_gpt2
from tests.writing import search, some_prompts, write


class Alternating(Constraint):
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


class Moving(Alternating):
    """At odd places the even tokens above 10 are not struck: token 3 gets their probability."""

    def moved(self, state):
        return ((torch.arange(30) % 2 == 0) & (torch.arange(30) > 10), 3) if state % 2 else None


@pytest.mark.parametrize("shift", [0.0, 7.5])  # log-probabilities, logits
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.2, 0.0])
def test_what_is_moved_adds_up_as_probabilities_do(shift, temperature):
    scores = torch.randn(3, 30).log_softmax(-1)
    expected = (scores / (temperature or 1.0)).exp()
    moved = expected[:2, 12::2]
    if temperature:
        expected[:2, 3] += moved.sum(-1)
    else:
        expected[:2, 3] = torch.maximum(expected[:2, 3], moved.amax(-1))
    expected[:2, ::2] = 0
    expected[2, 1::2] = 0
    for filtered in (None, torch.full_like(scores, float("-inf"))):  # the scores themselves, or what is fallen back on
        given = (scores + shift,) if filtered is None else (filtered, scores + shift)
        found = constrain(given[0], Moving(), [1, 3, 2], *given[1:], temperature=temperature) - shift
        torch.testing.assert_close((found / (temperature or 1.0)).exp(), expected, atol=1e-6, rtol=1e-6)


def test_damaged_weights_are_said_and_do_not_hang(gpt2):
    with torch.no_grad():
        gpt2.word_embedding.weight[7] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        write(gpt2, some_prompts(2), DecodingSettings())


def test_token_texts(mini_tokenizer):
    more = MINI_VOCABULARY + 40  # rows of an embedding that are no token
    texts = token_texts(mini_tokenizer, more)
    assert len(texts) == more and texts[3919] == "no" and not any(texts[MINI_VOCABULARY:])
    assert "" in texts[:256]  # bytes that are no character alone
    ids = mini_tokenizer.encode("Shall I compare thee,\nto a summer's day?").ids
    assert "".join(texts[token] for token in ids) == "Shall I compare thee,\nto a summer's day?"
