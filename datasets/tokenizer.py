"""GPT-2's byte-level BPE tokenizer (Radford et al. 2019, section 2.2), by Hugging Face's `tokenizers` library.

Read from a model folder, or trained on text of one's own.
"""

import argparse
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from config import ANSWERS, END_OF_TEXT
from errors import UserError, check
from files import read_json, shortened
from formats.hub import find_model

REMEDY = "download the model again"
# Options of a BPE that cut text otherwise than GPT-2's, which has none of them.
_OTHER_CUTS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "byte_fallback")
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder):
    """The Tokenizer of a model folder, from tokenizer.json, or from vocab.json and merges.txt. Raises UserError.

    As transformers reads them for GPT-2: vocabulary, merges and added tokens; a padding, a truncation or a
    post-processor of the file's own is left out. What would cut or change the text otherwise is refused.
    """
    folder = Path(folder)
    try:
        vocabulary, merges = _read_bpe(folder)
        listed, others = _read_added_tokens(folder)
        known = END_OF_TEXT in vocabulary or END_OF_TEXT in [token.content for token in listed.values()]
        check(known, f"the tokenizer in {folder} has no token {END_OF_TEXT}: it is not GPT-2's")
        _check_cuts(folder)
        lacking = len(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys())
        check(not lacking, f"the tokenizer in {folder} has no token for {lacking} of the 256 bytes: text would be lost")
        tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.add_tokens([listed[number] for number in sorted(listed)] + others)
    except UserError as error:
        reason = str(error).removesuffix(f": {REMEDY}")
        if reason == str(error):
            raise
        raise UserError(f"the tokenizer in {folder} cannot be read ({reason}): {REMEDY}") from error
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise UserError(f"the tokenizer in {folder} cannot be read ({error}): {REMEDY}") from error
    for number, token in sorted(listed.items()):
        found = tokenizer.token_to_id(token.content)
        check(found == number, f"{folder}: the added token {token.content!r} shall have id {number}, it has {found}")
    numbers = sorted(tokenizer.get_vocab().values())
    each = numbers == list(range(len(numbers)))
    check(each, f"the tokenizer in {folder} is damaged: its ids are not 0 to {len(numbers) - 1}, each once")
    return tokenizer


def tokenizer_for(given):
    """A Tokenizer as it is; for None, and for the parsed flags that the course's code hands over, that of their GPT-2.

    Raises UserError for anything else, and where the model cannot be had.
    """
    if isinstance(given, Tokenizer):
        return given
    if given is not None and not isinstance(given, argparse.Namespace):
        raise UserError(f"a {type(given).__name__} is no tokenizer here: give datasets.load_tokenizer(MODEL_FOLDER)")
    model = getattr(given, "model_path", None) or getattr(given, "model_size", None) or "gpt2"
    return load_tokenizer(find_model(model))


def _read_bpe(folder):
    """(vocabulary, merges) of a folder."""
    if (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json", {"model": dict}, remedy=REMEDY)["model"]
        vocabulary, merges = model.get("vocab"), model.get("merges", [])
        check(isinstance(vocabulary, dict) and isinstance(merges, list), f"tokenizer.json holds no BPE: {REMEDY}")
        return vocabulary, [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    files = folder / "vocab.json", folder / "merges.txt"
    found = all(file.is_file() for file in files)
    check(found, f"{folder} holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt")
    return read_json(files[0], remedy=REMEDY), models.BPE.read_file(*map(str, files))[1]


def _check_cuts(folder):
    """Raise UserError where a folder's files ask for another cutting of the text than GPT-2's."""
    options, whole = _read_if_there(folder / "tokenizer_config.json"), _read_if_there(folder / "tokenizer.json")
    for name in ("add_prefix_space", "split_special_tokens"):
        check(not options.get(name), f"{folder}/tokenizer_config.json: {name} changes the text; GPT-2's does not")
    if not whole:
        return
    listed = isinstance(whole.get("added_tokens"), list)
    check(listed, f"{folder}/tokenizer.json is damaged (it has no added_tokens): {REMEDY}")
    changes = whole.get("normalizer") is not None
    check(not changes, f"the tokenizer in {folder} changes the text before it encodes it: GPT-2's does not; take that")
    cut, model = whole.get("pre_tokenizer"), whole["model"]
    same = isinstance(cut, dict) and cut.get("type") == "ByteLevel" and cut.get("use_regex", True) is True
    same = same and not cut.get("add_prefix_space") and model.get("type", "BPE") == "BPE"
    check(same, f"the tokenizer in {folder} cuts the text otherwise than GPT-2's byte-level BPE: take that")
    for name in _OTHER_CUTS:
        check(
            not model.get(name),
            f"{folder}/tokenizer.json: {name} is {shortened(model.get(name))}; GPT-2's BPE has none",
        )
    rest = whole | {"model": model | {"vocab": {}, "merges": []}, "added_tokens": []}
    Tokenizer.from_str(json.dumps(rest))  # what is left out must be sound, too: who knows what else has come to harm


def _read_added_tokens(folder):
    """({id: AddedToken}, [AddedToken]): those listed with an id, and special ones that follow, as in transformers."""
    options = _read_if_there(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in options:
        decoder = options["added_tokens_decoder"]
        check(isinstance(decoder, dict), f"tokenizer_config.json is damaged (added_tokens_decoder): {REMEDY}")
        listed = {int(number): _token(entry) for number, entry in decoder.items()}
    else:  # as before transformers 4.34
        options |= _read_if_there(folder / "special_tokens_map.json")
        added = _read_if_there(folder / "added_tokens.json")
        listed = {int(number): AddedToken(token, normalized=False) for token, number in added.items()}
        for entry in _read_if_there(folder / "tokenizer.json").get("added_tokens") or []:
            listed[int(entry["id"])] = _token({name: value for name, value in entry.items() if name != "id"})
    extra = options.get("extra_special_tokens") or options.get("additional_special_tokens") or []
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    special |= {name: value for name, value in options.items() if name in _NAMED}
    named = [special.get(name) for name in _NAMED]
    named += [v for k, v in options.items() if k.endswith("_token") and k not in _NAMED and isinstance(v, str)]
    tokens = [_token(one) for one in (*named, *(extra.values() if isinstance(extra, dict) else extra)) if one]
    here = {token.content for token in listed.values()}
    return listed, [token for token in tokens if token.content not in here]


def _token(entry):
    """An AddedToken of a record, or of a special token's text."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    unknown = entry.keys() - {"content", "lstrip", "rstrip", "single_word", "normalized", "special", "__type"}
    check(not unknown, f"an added token has a field {min(unknown, default='')!r}: {REMEDY}")
    return AddedToken(**{name: value for name, value in entry.items() if name != "__type"})


def _read_if_there(path):
    return read_json(path, remedy=REMEDY) if path.is_file() else {}


def train_tokenizer(texts, vocab_size):
    """A byte-level BPE Tokenizer of exactly vocab_size tokens, trained on an iterable of strings. Raises UserError.

    As in GPT-2, every byte is a token, so that any text can be written, and <|endoftext|> is the last one. "no" and
    "yes" are single tokens with GPT-2's ids: the ids of a BPE are free, only the order of its merges means something.
    """
    merges = _learn_merges(texts, vocab_size)
    if len(_ALPHABET) + len(merges) + 1 < vocab_size:
        raise UserError(
            f"the corpus is too small: it gives {len(_ALPHABET) + len(merges) + 1} tokens, not --vocab_size "
            f"{vocab_size}; add text"
        )
    merges = _with_answers(merges)
    tokens = [*_ALPHABET, *map("".join, merges), END_OF_TEXT]
    for word, wanted in ANSWERS.items():
        place = tokens.index(word)
        tokens[place], tokens[wanted] = tokens[wanted], tokens[place]
    return _tokenizer_of(tokens, merges)


def train_bpe(texts, vocab_size):
    """A byte-level BPE Tokenizer of vocab_size tokens, or of fewer where the texts give no more merges.

    As above, but the answers have no ids of their own.
    """
    merges = _learn_merges(texts, vocab_size)
    return _tokenizer_of([*_ALPHABET, *map("".join, merges), END_OF_TEXT], merges)


def _learn_merges(texts, vocab_size):
    """The merges of a BPE that has, with all bytes and <|endoftext|>, vocab_size tokens (or fewer)."""
    learned = _byte_level(models.BPE())
    size, show = vocab_size - 1, sys.stderr.isatty()
    learned.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=_ALPHABET, show_progress=show)
    )
    return [tuple(merge) for merge in json.loads(learned.to_str())["model"]["merges"]]


def _tokenizer_of(tokens, merges):
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
