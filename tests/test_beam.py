"""Beam search against transformers (sequences and scores), against every sequence there is, and its cache."""

import itertools
from collections import Counter

import pytest
import torch

from config import DecodingSettings
from errors import UserError
from models.gpt2 import GPT2Model
from tests.helpers import mostly_slow
from tests.tiny import make_hugging_face_gpt2
from tests.writing import search, some_prompts, write

END = 8599


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A vocabulary of 30 tokens, where ends are common: (ours, theirs)."""
    theirs = make_hugging_face_gpt2(vocab_size=30, eos_token_id=29, bos_token_id=29)
    folder = tmp_path_factory.mktemp("small")
    theirs.save_pretrained(folder)
    return GPT2Model.from_pretrained(str(folder)).eval(), theirs


def their_beams(model, prompt, beams, steps, end, **options):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=end,
        pad_token_id=end,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    texts = [[token for token in ids[len(prompt) :] if token != end] for ids in out.sequences.tolist()]
    return texts, out.sequences_scores.tolist()


@pytest.mark.parametrize("beams", mostly_slow([3, 2, 5]))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_sequences_and_scores_equal_transformers(small, beams, length_penalty, early_stopping):
    ours, theirs = small
    prompts = [[token % 29 for token in prompt] for prompt in some_prompts(8, seed=2)]
    settings = DecodingSettings(
        max_new_tokens=9, beams=beams, length_penalty=length_penalty, early_stopping=str(early_stopping).lower()
    )
    free = search(ours, prompts, settings)
    end = Counter(token for mine in free for ids, _ in mine for token in ids).most_common(1)[0][0]  # ends often, then
    found = search(ours, prompts, settings, end)
    for prompt, mine in zip(prompts, found, strict=True):
        options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        texts, scores = their_beams(theirs, prompt, beams, 9, end, **options)
        assert [ids for ids, _ in mine] == texts
        torch.testing.assert_close([score for _, score in mine], scores, atol=1e-5, rtol=1e-5)
    assert length_penalty == 2 or any(len(ids) < 8 for mine in found for ids, _ in mine)  # 2 wants long texts


def test_one_beam_is_greedy(gpt2):
    prompts = some_prompts(5)
    greedy = write(gpt2, prompts, DecodingSettings(temperature=0, max_new_tokens=12))
    found = search(gpt2, prompts, DecodingSettings(max_new_tokens=12, beams=1))
    assert [mine[0][0] for mine in found] == greedy


def test_the_real_vocabulary_with_history_filters_equals_transformers(gpt2, hugging_face_gpt2):
    settings = DecodingSettings(max_new_tokens=14, repetition_penalty=1.3, no_repeat_ngram=2, beams=4)
    prompts = some_prompts(4, seed=1)
    found = search(gpt2, prompts, settings, end_of_text=END)
    for prompt, mine in zip(prompts, found, strict=True):
        options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "early_stopping": False}
        texts, scores = their_beams(hugging_face_gpt2, prompt, 4, 14, END, **options)
        assert [ids for ids, _ in mine] == texts
        torch.testing.assert_close([score for _, score in mine], scores, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_enough_beams_find_the_best_of_all_sequences(small):
    """30^3 sequences of three tokens, each scored alone; 900 beams lose none of them."""
    ours, _ = small
    prompt = [3, 1, 4]
    found = search(ours, [prompt], DecodingSettings(max_new_tokens=3, beams=900, length_penalty=0.0))[0]
    pairs = torch.tensor(list(itertools.product(range(30), repeat=2)))
    ids = torch.cat([torch.tensor([prompt]).expand(900, -1), pairs], dim=1)
    logits = ours.hidden_state_to_token(ours(ids)["last_hidden_state"])[:, 2:].log_softmax(-1)
    first, second = (logits[:, i].gather(1, pairs[:, i : i + 1]) for i in (0, 1))
    scores = first + second + logits[:, 2]  # (900, 30)
    best = scores.flatten().topk(20)
    expected = [[*pairs[place // 30].tolist(), place % 30] for place in best.indices.tolist()]
    assert [text for text, _ in found[:20]] == expected
    torch.testing.assert_close(torch.tensor([score for _, score in found[:20]]), best.values, atol=1e-5, rtol=1e-5)


def test_a_batch_gives_what_each_prompt_gives_alone(gpt2):
    prompts, settings = some_prompts(6), DecodingSettings(max_new_tokens=10, beams=4)
    together = search(gpt2, prompts, settings, end_of_text=END)
    for prompt, mine in zip(prompts, together, strict=True):
        alone = search(gpt2, [prompt], settings, end_of_text=END)[0]
        assert [ids for ids, _ in alone] == [ids for ids, _ in mine]


def test_stop_ends_texts(gpt2):
    lengths = [3, 8, 5]

    def stop(index, ids):
        return len(ids) >= lengths[index]

    found = search(gpt2, some_prompts(3), DecodingSettings(max_new_tokens=12, beams=3), stop=stop)
    assert [{len(ids) for ids, _ in mine} for mine in found] == [{3}, {8}, {5}]


def test_a_prompt_that_fills_the_context_is_refused(gpt2):
    with pytest.raises(UserError, match="leaves no room"):
        search(gpt2, [[5] * 256], DecodingSettings())
    assert len(search(gpt2, [[5] * 250], DecodingSettings())[0][0][0]) == 6
