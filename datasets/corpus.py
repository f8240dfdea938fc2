"""A folder of text files as one long row of token ids on disk, read through a memory map: pre-training's data.

    FOLDER/train.bin, held_out.bin     token ids, two bytes each (four where the vocabulary needs them)
           corpus.json                 the dtype, and every document with its bytes and tokens, in order
           tokenizer.json, ...         the tokenizer that was trained on the training part

Every document ends with <|endoftext|>.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import END_OF_TEXT
from datasets.batching import pad
from datasets.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from errors import UserError
from files import read_text

HELD_OUT_SHARE = 0.01  # of every file's end, where no whole files are named
SHORT = 5_000  # characters; a shorter document is held out whole or not at all
_PIECE, _LOT = 100_000, 16  # characters tokenised as one, and such pieces at a time: they bound the memory


class Corpus:
    """The documents of a folder: its .txt files, or those parts of them that belong to "train" or "held_out".

    held_out: names of files to keep out of training; none: the last hundredth of each. Raises UserError.
    """

    def __init__(self, folder, held_out=()):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"--corpus: {folder} is no folder; give one with .txt files")
        self.paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.txt"))}
        if not self.paths:
            raise UserError(f"--corpus: {folder} holds no .txt file; put the text there first")
        for name in held_out:
            if name not in self.paths:
                raise UserError(f"--held_out: there is no {name} in {folder}; give names of files in it")
        if held_out and set(held_out) == set(self.paths):
            raise UserError("--held_out names every file of the corpus: nothing is left to train on")
        self.held_out = set(held_out)

    def documents(self, part):
        """(name, text) of every document of a part, read one at a time."""
        owed = 0.0  # characters that should have been held out by now, and are not
        for name, path in self.paths.items():
            if self.held_out:
                if (name in self.held_out) == (part == "held_out"):
                    yield name, read_text(path)
                continue
            text = read_text(path)
            owed += HELD_OUT_SHARE * len(text)
            cut = _held_out_from(text, owed)
            owed -= len(text) - cut
            text = text[:cut] if part == "train" else text[cut:]
            if text:
                yield name, text


def _held_out_from(text, owed):
    """Where the held-out end of a document begins: before a line, about HELD_OUT_SHARE before its end.

    A document that has no line end there, or is short, gives nothing, until as much is owed as it has: then all of it.
    """
    cut = text.rfind("\n", 0, int(len(text) * (1 - HELD_OUT_SHARE))) + 1
    if len(text) >= SHORT and len(text) - cut <= 3 * HELD_OUT_SHARE * len(text):
        return cut
    return 0 if owed >= len(text) else len(text)


def prepare_corpus(corpus, folder, vocab_size, context):
    """Train the tokenizer and write the tokens into folder, whole or not at all. Raises UserError."""
    folder = Path(folder)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        pieces = (piece for _, text in corpus.documents("train") for piece in _pieces(text))
        tokenizer = train_tokenizer(pieces, vocab_size)
        save_tokenizer(tokenizer, unfinished, context)
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        record = {"dtype": dtype}
        for part in ("train", "held_out"):
            record[part] = _write_tokens(corpus.documents(part), unfinished / f"{part}.bin", tokenizer, dtype)
        (unfinished / "corpus.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"cannot write {folder} ({error.strerror}): make room, or choose another --run_dir") from error
    except UserError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_tokens(documents, path, tokenizer, dtype):
    """Append every document's token ids to a file. Returns [{"name", "bytes", "tokens"}].

    Written with write(), not through a map: a full disk is then an error that can be told, not a killed process.
    """
    end, records = tokenizer.token_to_id(END_OF_TEXT), []
    with open(path, "wb") as file:
        for name, text in tqdm(documents, desc=f"tokenising {path.stem}", unit="file", disable=None):
            count = 0
            pieces = _pieces(text)
            while lot := list(itertools.islice(pieces, _LOT)):
                for encoding in tokenizer.encode_batch_fast(lot, add_special_tokens=False):
                    file.write(np.asarray(encoding.ids, dtype=dtype).tobytes())
                    count += len(encoding.ids)
            file.write(np.asarray([end], dtype=dtype).tobytes())
            records.append({"name": name, "bytes": len(text.encode()), "tokens": count + 1})
    return records


def _pieces(text):
    """Cut a text before line ends, where no token of GPT-2 reaches across."""
    start = 0
    while start < len(text):
        cut = text.find("\n", start + _PIECE)
        while cut != -1 and text[cut - 1].isspace():  # white space is one pre-token: cut before all of it
            cut = text.find("\n", cut + 1)
        cut = len(text) if cut == -1 else cut
        yield text[start:cut]
        start = cut


class TokenFile:
    """The tokens that `prepare_corpus` wrote: `tokenizer`, `train` and, by document, `held_out`, mapped into memory."""

    def __init__(self, folder):
        folder = Path(folder)
        self.tokenizer = load_tokenizer(folder)
        try:
            self.record = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            self.train = np.memmap(folder / "train.bin", dtype=self.record["dtype"], mode="r")
            tokens = np.memmap(folder / "held_out.bin", dtype=self.record["dtype"], mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}): delete it, and it is made again") from error
        for part, found in (("train", len(self.train)), ("held_out", len(tokens))):
            wanted = sum(document["tokens"] for document in self.record[part])
            if found != wanted:
                raise UserError(
                    f"{folder}/{part}.bin has {found} tokens, not {wanted}: delete {folder} to make it again"
                )
        ends = np.cumsum([document["tokens"] for document in self.record["held_out"]])
        names = [document["name"] for document in self.record["held_out"]]
        self.held_out = dict(zip(names, np.split(tokens, ends[:-1]), strict=True))


class PackedBatches:
    """Endless shuffled windows of a token file, cut into epochs of `batches` batches: what the training loop wants.

    tokens: (N,) array. Each pass over it starts at another offset and takes every window of `context` tokens once, in
    an order that is a function of the seed and the pass alone, so that a resumed run sees what it would have seen.
    rank, world: this process and how many share the work.
    """

    def __init__(self, tokens, context, batch_size, batches, seed=0, rank=0, world=1):
        self.windows = len(tokens) // context - 1  # whatever the offset
        if self.windows < 1:
            raise UserError(
                f"the corpus has {len(tokens)} tokens, less than two windows of --context {context}: add text"
            )
        self.tokens, self.context, self.batch_size, self.batches = tokens, context, batch_size, batches
        self.seed, self.rank, self.world = seed, rank, world
        self._pass = (None, None, None)

    def __len__(self):
        return self.batches

    def epoch(self, number, start=0):
        """The batches of an epoch, counted from 1, from its batch `start` on: {"token_ids", "attention_mask"}, both
        (B, context) long."""
        for index in range((number - 1) * self.batches + start, number * self.batches):
            first = (index * self.world + self.rank) * self.batch_size
            rows = np.stack([self._window(place) for place in range(first, first + self.batch_size)])
            token_ids = torch.from_numpy(rows.astype(np.int64))
            yield {"token_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}

    def _window(self, place):
        number, place = divmod(place, self.windows)
        if self._pass[0] != number:
            random = np.random.default_rng([self.seed, number])
            self._pass = (number, random.integers(self.context), random.permutation(self.windows))
        _, offset, order = self._pass
        start = offset + order[place] * self.context
        return self.tokens[start : start + self.context]


def held_out_batches(documents, context, batch_size):
    """Batches that predict every token of each document but its first exactly once; windows overlap by one token.

    documents: a list of token arrays, which share the batches.
    """
    rows = [
        tokens[i : i + context].tolist() for tokens in documents for i in range(0, max(1, len(tokens) - 1), context - 1)
    ]
    for start in range(0, len(rows), batch_size):
        token_ids, attention_mask = pad(rows[start : start + batch_size], 0)
        yield {"token_ids": token_ids, "attention_mask": attention_mask}
