"""Tokenizers read from folders, against transformers."""

import json

import pytest
import transformers
from tokenizers import normalizers, processors

from datasets import (
    ParaphraseDetectionDataset,
    SonnetsDataset,
    load_paraphrase_data,
    load_sonnets,
    load_tokenizer,
)
from errors import UserError
from tests.helpers import PROMPT_END, prompt_of


def test_a_tokenizer_json_is_read_without_its_padding_and_truncation(tokenizer, tokenizer_folder, tmp_path):
    other = load_tokenizer(tokenizer_folder)
    other.enable_truncation(3)
    other.enable_padding(length=99)
    other.save(str(tmp_path / "tokenizer.json"))
    text = "yes and no, élan<|endoftext|>"
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(text).ids == tokenizer.encode(text).ids and loaded.encode(text).ids[-1] == 8599
    assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"),
        ("{", r"cannot be read \(.*\): download the model again"),
        (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}), "has no token <|endoft"),
    ],
)
def test_a_wrong_tokenizer_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words.replace("|", r"\|")):
        load_tokenizer(tmp_path)


def test_real_vocabulary_encodes_as_transformers_does(real_data):
    folder = real_data / "gpt2-vocab"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("yes").ids == [8505] and tokenizer.encode("no").ids == [3919]
    assert tokenizer.token_to_id("<|endoftext|>") == 50256 and tokenizer.get_vocab_size() == 50257
    oracle = transformers.GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    sonnets = [
        text
        for name in ("sonnets.txt", "TRUE_sonnets_held_out_dev.txt", "sonnets_held_out.txt")
        for text in load_sonnets(real_data / name)
    ]
    ids = SonnetsDataset(sonnets, tokenizer).rows
    assert ids == [[*row, 50256] for row in oracle(sonnets).input_ids]
    assert [tokenizer.decode(row[:-1]) for row in ids] == sonnets

    pairs = load_paraphrase_data(real_data / "quora-dev.csv", "dev")[:200]
    expected = oracle([prompt_of(*pair[:2]) for pair in pairs]).input_ids
    dataset = ParaphraseDetectionDataset(pairs, tokenizer)
    assert [row.tolist() for row in dataset.token_ids] == expected

    shortened = ParaphraseDetectionDataset(pairs, tokenizer, max_length=30)
    assert shortened.num_shortened == sum(len(row) > 30 for row in expected) > 100
    end = oracle(PROMPT_END).input_ids
    for row, whole in zip(shortened.token_ids, expected, strict=True):
        assert len(row) <= 30 and oracle.decode(row.tolist()).endswith(PROMPT_END)
        assert row[-9:].tolist() == whole[-9:] == end[-9:]


def test_a_post_processor_that_adds_tokens_is_dropped(tokenizer, tokenizer_folder, tmp_path):
    changed = load_tokenizer(tokenizer_folder)
    changed.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 8599)]
    )
    changed.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("yes no").ids == tokenizer.encode("yes no").ids


def test_a_tokenizer_that_changes_the_text_is_refused(tokenizer_folder, tmp_path):
    changed = load_tokenizer(tokenizer_folder)
    changed.normalizer = normalizers.Lowercase()
    changed.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="changes the text before it encodes it"):
        load_tokenizer(tmp_path)


def test_added_tokens_of_an_old_folder_are_read_as_transformers_does(tokenizer_folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tokenizer_folder / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<sonnet>": 8600, "<line>": 8601}')
    ids = load_tokenizer(tmp_path).encode("<sonnet>yes<line>no").ids
    assert ids == [8600, 8505, 8601, 3919]
    (tmp_path / "added_tokens.json").write_text('{"<sonnet>": 9000}')
    with pytest.raises(UserError, match="the added token '<sonnet>' shall have id 9000, it has 8600"):
        load_tokenizer(tmp_path)
