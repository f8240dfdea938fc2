"""A folder of text files as one long row of token ids on disk, read through a memory map: pre-training's data.

    FOLDER/train.bin, held_out.bin     token ids, two bytes each (four where the vocabulary needs them)
           corpus.json                 the dtype, and every document with its bytes and tokens, in order
           tokenizer.json, ...         the tokenizer that was trained on the training part

Every document ends with <|endoftext|>.
"""

import itertools
import json
import os
import re
import shutil
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cli.script import say
from config import ANSWERS, END_OF_TEXT
from datasets.batching import pad
from datasets.paraphrase import ParaphraseDetectionDataset, load_paraphrase_data
from datasets.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from errors import UserError, check
from files import is_a, read_blocks, read_json, where_it_may_be

HELD_OUT_SHARE = 0.01  # of all text, where no files are named
SHORT = 5_000  # characters; a shorter document is held out whole or not at all
_BLOCK = 2**18  # characters read at once
_PIECE, _LOT = 100_000, 16  # characters tokenised as one, and such pieces at a time: they bound the memory
_LONGEST_PIECE = 1_000_000  # where no white space comes


class Corpus:
    """The documents of a folder: its .txt files, or those parts of them that belong to "train" or "held_out".

    held_out: names of files to keep out of training; none: a hundredth of the text, as `cuts` says. Files are read in
    blocks: none has to fit into memory. Raises UserError.
    """

    def __init__(self, folder, held_out=()):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"--corpus: {folder} is no folder; give one with .txt files: {where_it_may_be(folder)}")
        files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
        paths = [path for path in files if path.suffix.lower() == ".txt"]
        self.paths = {path.relative_to(folder).as_posix(): path for path in paths}
        if not self.paths:
            raise UserError(f"--corpus: {folder} holds no .txt file; put the text there first")
        for name in held_out:
            if name not in self.paths:
                raise UserError(f"--held_out: there is no {name} in {folder}; give names of files in it")
        if held_out and set(held_out) == set(self.paths):
            raise UserError("--held_out names every file of the corpus: nothing is left to train on")
        self.held_out = set(held_out)
        if len(files) > len(paths):
            say(f"{folder}: {len(paths)} .txt files are read, {len(files) - len(paths)} other files are not")

    @cached_property
    def cuts(self):
        """{name: (the character from which on it is held out, the number of its characters)}.

        From document to document more is owed to the held-out part, a hundredth of each. A long one pays from its end,
        a short one whole, as soon as half of it is owed; if none has paid, the longest does.
        """
        sizes = {name: _size(path) for name, path in self.paths.items()}
        if self.held_out:
            return {name: (0 if name in self.held_out else size, size) for name, size in sizes.items()}
        cuts, owed = {}, 0.0
        for name, size in sizes.items():
            owed += HELD_OUT_SHARE * size
            cut = 0 if size < SHORT and owed >= size / 2 else size
            if size >= SHORT and owed >= HELD_OUT_SHARE * SHORT:
                cut = _cut(self.paths[name], size, min(int(owed), size // 10))
            cuts[name] = cut, size
            owed -= size - cut
        if all(cut == size for cut, size in cuts.values()):
            name = max(sizes, key=sizes.get)
            cuts[name] = _cut(self.paths[name], sizes[name], max(1, min(int(owed), sizes[name] // 10))), sizes[name]
        return cuts

    def documents(self, part):
        """(name, pieces of its text in order) of every document of a part, read as they are taken."""
        for name, (cut, size) in self.cuts.items():
            start, stop = (0, cut) if part == "train" else (cut, size)
            if start < stop:
                yield name, _pieces(_characters(self.paths[name], start, stop))


def _size(path):
    """The number of characters of a file. Raises UserError for one without text."""
    size, blank = 0, True
    for block in read_blocks(path, _BLOCK):
        size, blank = size + len(block), blank and not block.strip()
    check(not blank, f"{path} is empty: put the data there first")
    return size


def _characters(path, start, stop):
    """The characters from start to stop of a file, in blocks."""
    place = 0
    for block in read_blocks(path, _BLOCK):
        part = block[max(0, start - place) : max(0, stop - place)]
        if part:
            yield part
        place += len(block)
        if place >= stop:
            return


def _cut(path, size, wanted):
    """Where about `wanted` characters are left: between lines, if there is a line end near, else between words."""
    middle, low = size - wanted, max(1, size - wanted - wanted // 2)
    text = "".join(_characters(path, low, size - wanted // 2))
    for mark, after in (("\n", 1), (" ", 0)):
        places = [text.rfind(mark, 0, middle - low), text.find(mark, middle - low)]
        near = [low + place + after for place in places if place >= 0 and low + place + after < size]
        if near:
            return min(near, key=lambda place: abs(place - middle))
    return max(1, middle)


def prepare_corpus(corpus, folder, vocab_size, context, pairs=None):
    """Train the tokenizer and write the tokens into folder, whole or not at all. Raises UserError.

    pairs: file of question pairs in the course's format; they are one more document to train on.
    """
    folder = Path(folder)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        texts = (piece for _, pieces in corpus.documents("train") for piece in pieces)
        tokenizer = train_tokenizer(texts, vocab_size)
        save_tokenizer(tokenizer, unfinished, context)
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        record = {"dtype": dtype}
        for part in ("train", "held_out"):
            record[part] = _write_tokens(corpus.documents(part), unfinished / f"{part}.bin", tokenizer, dtype)
        if pairs is not None:
            record["train"].append(_write_pairs(pairs, unfinished / "train.bin", tokenizer, dtype))
        paths = {part: unfinished / f"{part}.bin" for part in ("train", "held_out")}
        record["crc32"] = {part: _crc(np.memmap(path, dtype=dtype, mode="r")) for part, path in paths.items()}
        record["crc32"]["documents"] = _documents_crc(record)
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
        for name, pieces in tqdm(documents, desc=f"tokenising {path.stem}", unit="file", disable=None):
            count, size = 0, 0
            while lot := list(itertools.islice(pieces, _LOT)):
                size += sum(len(piece.encode()) for piece in lot)
                for encoding in tokenizer.encode_batch_fast(lot, add_special_tokens=False):
                    file.write(np.asarray(encoding.ids, dtype=dtype).tobytes())
                    count += len(encoding.ids)
            file.write(np.asarray([end], dtype=dtype).tobytes())
            records.append({"name": name, "bytes": size, "tokens": count + 1})
    return records


def _write_pairs(source, path, tokenizer, dtype):
    """Append question pairs to the tokens of path: the task's prompt, the answer as the one token where it is read, a
    line end. Returns their record."""
    dataset = ParaphraseDetectionDataset(load_paraphrase_data(source), tokenizer)
    line_end, answers = tokenizer.encode("\n").ids, list(ANSWERS.values())
    labelled = zip(dataset.token_ids, dataset.labels, strict=True)
    rows = [[*ids.tolist(), answers[label], *line_end] for ids, label in labelled]
    tokens = np.asarray([*itertools.chain.from_iterable(rows), tokenizer.token_to_id(END_OF_TEXT)], dtype=dtype)
    with open(path, "ab") as file:
        file.write(tokens.tobytes())
    return {"name": Path(source).name, "bytes": Path(source).stat().st_size, "tokens": len(tokens)}


_SAFE_CUT = re.compile(r"(?<=\S)[\n ]")


def _pieces(blocks):
    """A text, given in blocks, in pieces, cut before white space, where no token of GPT-2 reaches across.

    White space is one pre-token with what follows it: the cut is before all of it. (A million characters without any
    are cut nevertheless.)
    """
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > _PIECE:
            found = _SAFE_CUT.search(rest, _PIECE)
            if found is None and len(rest) < _LONGEST_PIECE:
                break
            cut = found.start() if found else _LONGEST_PIECE
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


class TokenFile:
    """The tokens that `prepare_corpus` wrote: `tokenizer`, `train` and, by document, `held_out`, mapped into memory."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.remedy = f"delete {self.folder}, and it is made again"
        self.tokenizer = load_tokenizer(self.folder)
        fields = {"dtype": str, "train": list, "held_out": list}
        self.record = read_json(self.folder / "corpus.json", fields, {"crc32": dict}, self.remedy)
        self.train, tokens = self._mapped("train"), self._mapped("held_out")
        ends = np.cumsum([document["tokens"] for document in self.record["held_out"]])
        names = [document["name"] for document in self.record["held_out"]]
        crc = self.record.get("crc32", {}).get("documents")  # older folders have none
        whole = crc in (None, _documents_crc(self.record))
        check(whole, f"{self.folder}/corpus.json is damaged (other documents than were written): {self.remedy}")
        check(len(set(names)) == len(names), f"{self.folder}/corpus.json is damaged (a name twice): {self.remedy}")
        self.held_out = dict(zip(names, np.split(tokens, ends[:-1]), strict=True))

    def _mapped(self, part):
        """The token ids of a part, which agree with the record. Raises UserError."""
        path, dtype, documents = self.folder / f"{part}.bin", self.record["dtype"], self.record[part]
        known = dtype in ("uint16", "uint32") and documents and all(map(_is_document, documents))
        check(known, f"{self.folder}/corpus.json is damaged: {self.remedy}")
        try:
            tokens = np.memmap(path, dtype=dtype, mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): {self.remedy}") from error
        wanted = sum(document["tokens"] for document in documents)
        check(len(tokens) == wanted, f"{path} has {len(tokens)} tokens, not {wanted}: {self.remedy}")
        crc = self.record.get("crc32", {}).get(part)
        whole = crc in (None, _crc(tokens)) and int(tokens.max()) < self.tokenizer.get_vocab_size()
        check(whole, f"{path} is damaged (it holds other tokens than were written): {self.remedy}")
        return tokens


def _is_document(record):
    kinds = {"name": str, "bytes": int, "tokens": int}
    if not isinstance(record, dict) or not all(is_a(record.get(name), kind) for name, kind in kinds.items()):
        return False
    return record["tokens"] > 0 and record["bytes"] > 0


def _documents_crc(record):
    return zlib.crc32(json.dumps([record["train"], record["held_out"]]).encode())


def _crc(tokens):
    """zlib's checksum of token ids, read in blocks."""
    crc = 0
    for start in range(0, len(tokens), _BLOCK):
        crc = zlib.crc32(tokens[start : start + _BLOCK].tobytes(), crc)
    return crc


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
    windows = [tokens[i : i + context] for tokens in documents for i in range(0, max(1, len(tokens) - 1), context - 1)]
    windows.sort(key=lambda window: -len(window))  # little padding where many documents are short
    for start in range(0, len(windows), batch_size):
        rows = [window.tolist() for window in windows[start : start + batch_size]]
        token_ids, attention_mask = pad(rows, 0)
        yield {"token_ids": token_ids, "attention_mask": attention_mask}
