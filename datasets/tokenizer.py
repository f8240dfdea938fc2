"""GPT-2's byte-level BPE tokenizer (Radford et al. 2019, section 2.2), by Hugging Face's `tokenizers` library.

Read from a model folder, or trained on text of one's own.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from config import ANSWERS, END_OF_TEXT
from errors import UserError, check
from files import read_json


def load_tokenizer(folder):
    """The Tokenizer of a model folder, from tokenizer.json, or from vocab.json and merges.txt. Raises UserError."""
    folder = Path(folder)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.add_special_tokens([END_OF_TEXT])
            _add_tokens(tokenizer, folder)
        else:
            raise UserError(f"{folder} holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt")
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise UserError(f"the tokenizer in {folder} cannot be read ({error}): download the model again") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise UserError(f"the tokenizer in {folder} has no token {END_OF_TEXT}: it is not GPT-2's")
    if tokenizer.normalizer is not None:
        raise UserError(f"the tokenizer in {folder} changes the text before it encodes it: GPT-2's does not; take that")
    tokenizer.no_padding()  # a tokenizer.json may carry settings of its own
    tokenizer.no_truncation()
    if tokenizer.post_processor is not None:  # it may add tokens; this one adds none
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _add_tokens(tokenizer, folder):
    """The tokens that a folder of vocab.json and merges.txt lists beside its vocabulary, each with its id."""
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        check(isinstance(decoder, dict), f"{folder}/tokenizer_config.json is damaged: added_tokens_decoder")
        added = {token.get("content"): int(number) for number, token in decoder.items()} | added
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=False)])
        found = tokenizer.token_to_id(token)
        check(found == number, f"{folder}: the added token {token!r} shall have id {number}, it has {found}")


def train_tokenizer(texts, vocab_size):
    """A byte-level BPE Tokenizer of exactly vocab_size tokens, trained on an iterable of strings. Raises UserError.

    As in GPT-2, every byte is a token, so that any text can be written, and <|endoftext|> is the last one. "no" and
    "yes" are single tokens with GPT-2's ids: the ids of a BPE are free, only the order of its merges means something.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = _byte_level(models.BPE())
    size = vocab_size - 1  # without <|endoftext|>
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=sys.stderr.isatty())
    learned.train_from_iterator(texts, trainer)
    if learned.get_vocab_size() < size:
        raise UserError(
            f"the corpus is too small: it gives {learned.get_vocab_size() + 1} tokens, not --vocab_size {vocab_size}; "
            "add text"
        )
    merges = _with_answers([tuple(merge) for merge in json.loads(learned.to_str())["model"]["merges"]])
    tokens = [*alphabet, *map("".join, merges), END_OF_TEXT]
    for word, wanted in ANSWERS.items():
        place = tokens.index(word)
        tokens[place], tokens[wanted] = tokens[wanted], tokens[place]
    tokenizer = _byte_level(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _with_answers(merges):
    """The merges, the last of them replaced where that is needed to make single tokens of "no" and "yes"."""
    for replaced in range(len(merges)):
        kept = merges[: len(merges) - replaced]
        added = []
        for word in ANSWERS:
            pieces = _merged(list(word), kept + added)
            while len(pieces) > 1:
                added.append((pieces[0], pieces[1]))
                pieces = ["".join(pieces[:2]), *pieces[2:]]
        if len(added) <= replaced:
            return kept + added
    raise UserError('the corpus is too small to make single tokens of "no" and "yes": add text')


def _merged(pieces, merges):
    """The pieces of one word after all merges that apply, the earliest first (what a BPE does)."""
    rank = {merge: place for place, merge in enumerate(merges)}
    while len(pieces) > 1:
        place = min(range(len(pieces) - 1), key=lambda i: rank.get(tuple(pieces[i : i + 2]), len(rank)))
        if tuple(pieces[place : place + 2]) not in rank:
            break
        pieces = [*pieces[:place], "".join(pieces[place : place + 2]), *pieces[place + 2 :]]
    return pieces


def save_tokenizer(tokenizer, folder, context):
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, as transformers wants them."""
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    options = {"add_prefix_space": False, "clean_up_tokenization_spaces": False, "model_max_length": context}
    record = {"tokenizer_class": "GPT2Tokenizer"} | special | options
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(map(" ".join, merges)),
        "tokenizer_config.json": json.dumps(record, indent=2),
    }
    for name, text in texts.items():  # written by us: the library hides what kind of error a full disk is
        (Path(folder) / name).write_text(text + "\n", encoding="utf-8")


def _byte_level(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
