"""data/gpt2-mini, the model that comes with the project: what it promises about itself."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from config import END_OF_TEXT
from datasets import load_paraphrase_data, load_sonnets, load_tokenizer
from datasets.paraphrase import PROMPT
from models.gpt2 import GPT2Model

MINI = Path(__file__).resolve().parents[1] / "data" / "gpt2-mini"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI)


def test_transformers_gives_our_logits():
    theirs = transformers.GPT2LMHeadModel.from_pretrained(MINI).eval()
    assert theirs.dtype == torch.float32  # stored in half precision, computed in full
    ours = GPT2Model.from_pretrained(str(MINI)).eval()
    ids = torch.randint(ours.config.vocab_size, (4, ours.config.max_position_embeddings))
    with torch.no_grad():
        logits = ours.hidden_state_to_token(ours(ids)["last_hidden_state"])
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_it_has_gpt2s_answers_and_writes_any_text_back(tokenizer):
    assert tokenizer.encode("no").ids == [3919] and tokenizer.encode("yes").ids == [8505]
    assert tokenizer.token_to_id(END_OF_TEXT) == tokenizer.get_vocab_size() - 1
    draw = random.Random(0)
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    for text in ["".join(map(chr, draw.choices(points, k=100))) for _ in range(100)]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    theirs = transformers.AutoTokenizer.from_pretrained(MINI)
    line = 'Shall I compare thee?\n  "No," said he; yes, naïve 🙂'
    assert theirs(line)["input_ids"] == tokenizer.encode(line).ids and theirs.decode(theirs(line)["input_ids"]) == line


def test_it_is_small_enough_for_a_repository():
    assert sum(file.stat().st_size for file in MINI.iterdir()) < 20 * 2**20


def test_its_context_holds_the_real_data(tokenizer, real_data):
    context = json.loads((MINI / "config.json").read_text())["n_positions"]
    texts = load_sonnets(real_data / "sonnets.txt") + load_sonnets(real_data / "TRUE_sonnets_held_out_dev.txt")
    pairs = load_paraphrase_data(real_data / "quora-dev.csv", split="dev")
    texts += [PROMPT.format(first=row[0], second=row[1]) for row in pairs]
    assert max(len(encoding.ids) for encoding in tokenizer.encode_batch(texts)) < context


def test_it_knows_verse_better_than_chance():
    """Lines of the sample sonnets, which it has never seen, against the same words in another order."""
    gpt2, tokenizer = GPT2Model.from_pretrained(str(MINI)).eval(), load_tokenizer(MINI)
    draw, better = random.Random(0), 0
    sonnets = load_sonnets(MINI.parent / "sample" / "sonnets.txt")[:20]
    for sonnet in sonnets:
        words = sonnet.split()
        losses = []
        for text in (" ".join(words), " ".join(draw.sample(words, len(words)))):
            ids = torch.tensor([tokenizer.encode(text).ids])
            with torch.no_grad():
                logits = gpt2.hidden_state_to_token(gpt2(ids)["last_hidden_state"])
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item())
        better += losses[0] < losses[1]
    assert better == len(sonnets)
