"""Question pairs of the course (Quora): loading, cleaning, the prompt, and the rows as token ids."""

import re

import torch
from tqdm import tqdm

from cli.script import say
from config import ANSWERS, END_OF_TEXT
from datasets.batching import pad
from errors import UserError
from files import read_text

# One wording for training, dev and test. The answer, "no" or "yes", is the next token.
PROMPT = 'Is "{first}" a paraphrase of "{second}"? Answer "yes" or "no": '
MOST_LINES = 64  # of one record: a question with more line breaks than that is none
_TOKENIZE_AT_ONCE = 4096  # rows: bounds the memory of the tokenizer's own bookkeeping


def preprocess_string(text):
    """The course's cleaning: lower case, a space before . ? , and ', white space collapsed."""
    text = text.lower()
    for mark in ".?,'":
        text = text.replace(mark, f" {mark}")
    return " ".join(text.split())


def load_paraphrase_data(path, split="train"):
    """The rows of a file: (sentence1, sentence2, label, id) or, for split="test", (sentence1, sentence2, id).

    Rows with fewer or more fields than the header has (a tab inside a question shifts the others) are left out and
    reported (how many, and on which lines), but for the test file, where every id must be answered: there a missing
    question counts as empty. Raises UserError for a missing column, a label that
    is neither 0 nor 1, an id that comes twice, or a file without a usable row.
    """
    columns = ["id", "sentence1", "sentence2"] + ([] if split == "test" else ["is_duplicate"])
    records = _records(path)
    _, header = next(records)
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(name or "(unnamed)" for name in header)
        raise UserError(
            f"{path} has no column {missing[0]} (found: {found}): it must be tab-separated with a header line"
        )
    places = [header.index(name) for name in columns]
    rows, cut_short, left_out, seen = [], [], [], {}
    for line, fields in records:
        first, second, identifier, *label = (
            fields[place].strip() if place < len(fields) else "" for place in (*places[1:3], places[0], *places[3:])
        )
        whole = len(fields) == len(header) and all(label)
        if not identifier or not (whole or split == "test"):
            left_out.append(line)
            continue
        if not whole:
            cut_short.append(line)
        identifier = identifier.lower()
        if identifier in seen:
            raise UserError(f"{path}: id {identifier} is on line {seen[identifier]} and again on line {line}")
        seen[identifier] = line
        label = () if split == "test" else (_label(label[0], path, line),)
        rows.append((preprocess_string(first), preprocess_string(second), *label, identifier))
    if not rows:
        raise UserError(f"{path} has no usable row ({len(left_out)} malformed): check that it is tab-separated")
    positive = f", {sum(row[2] for row in rows)} of them paraphrases" if split != "test" else ""
    say(f"{path}: {len(rows)} pairs{positive}")
    for lines, outcome in ((left_out, "left out"), (cut_short, "answered with what they have")):
        if lines:
            where = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
            say(f"{path}: {len(lines)} malformed rows {outcome} (lines {where})")
    return rows


def _records(path):
    """(line number, fields) of every row that is not blank, the header first.

    Fields are separated by tabs and may be quoted as in csv, line breaks inside included. A quotation mark that opens
    no such field is what somebody wrote: where it is never closed, or where closing it would swallow whole rows.
    """
    lines = read_text(path).split("\n")
    columns, number = None, 0
    while number < len(lines):
        fields, used = _record(lines, number, columns)
        if any(fields):
            columns = columns or len(fields)
            yield number + 1, fields
        number += used


def _record(lines, start, columns):
    """(fields, lines used) of the record that begins at lines[start]. columns: the header's, None for the header."""
    plain = lines[start].split("\t")
    for used in range(1, min(len(lines) - start, MOST_LINES) + 1):
        swallowed = [line for line in lines[start + 1 : start + used] if columns and line.count("\t") + 1 >= columns]
        if swallowed and len(plain) == columns:
            break  # the row is whole as it stands, and so are those that the quotation mark would swallow
        fields = _split_quoted("\n".join(lines[start : start + used]))
        if fields is not None:
            return fields, used
    return plain, 1


def _split_quoted(text):
    """The fields of a text whose quotation marks are all closed, or None. Within quotes "" stands for one mark."""
    fields, place = [], 0
    while True:
        if text[place : place + 1] == '"':
            match = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)', re.DOTALL).match(text, place)
            if match is None or (match.end() < len(text) and text[match.end()] != "\t"):
                return None
            fields.append(match[1].replace('""', '"'))
            place = match.end()
        else:
            end = text.find("\t", place)
            end = len(text) if end == -1 else end
            if "\n" in text[place:end]:
                return None  # only a quoted field goes on in the next line
            fields.append(text[place:end])
            place = end
        if place >= len(text):
            return fields
        place += 1  # the tab


def _label(text, path, line):
    try:
        label = float(text)
    except ValueError:
        label = None
    if label not in (0.0, 1.0):
        raise UserError(f"{path}, line {line}: is_duplicate is {text!r}, it must be 0 or 1")
    return int(label)


class ParaphraseDetectionTestDataset:
    """Pairs as token ids, tokenised once. rows: as from load_paraphrase_data(..., split="test").

    A pair that is too long for max_length tokens has its *questions* shortened, the longer one first; the end of the
    prompt, where the answer is read, is always whole.
    """

    def __init__(self, rows, tokenizer, max_length=1024):
        self.ids = [row[-1] for row in rows]
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        for word, token_id in ANSWERS.items():
            if tokenizer.encode(word).ids != [token_id]:
                raise UserError(f'the tokenizer has no token "{word}" with id {token_id}: use one that shares GPT-2\'s')
        self.token_ids, self.num_shortened = [], 0
        for start in tqdm(range(0, len(rows), _TOKENIZE_AT_ONCE), "tokenising", leave=False, disable=None):
            chunk = rows[start : start + _TOKENIZE_AT_ONCE]
            prompts = [PROMPT.format(first=row[0], second=row[1]) for row in chunk]
            for row, encoding in zip(chunk, tokenizer.encode_batch_fast(prompts), strict=True):
                ids = encoding.ids
                if len(ids) > max_length:
                    ids = _shortened(row[0], row[1], tokenizer, max_length)
                    self.num_shortened += 1
                self.token_ids.append(torch.tensor(ids, dtype=torch.int32))
        self.lengths = [len(ids) for ids in self.token_ids]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"token_ids": self.token_ids[index], "id": self.ids[index]}

    def collate_fn(self, items):
        """-> {"token_ids", "attention_mask"}: (B, T) long; "sent_ids": the rows' ids."""
        input_ids, attention_mask = pad([item["token_ids"] for item in items], self.end_of_text)
        return {
            "token_ids": input_ids,
            "attention_mask": attention_mask,
            "sent_ids": [item["id"] for item in items],
        }


class ParaphraseDetectionDataset(ParaphraseDetectionTestDataset):
    """The same with labels, 0 or 1. rows: as from load_paraphrase_data for training and dev files."""

    def __init__(self, rows, tokenizer, max_length=1024):
        super().__init__(rows, tokenizer, max_length)
        self.labels = [row[2] for row in rows]

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": self.labels[index]}

    def collate_fn(self, items):
        """As above, and "labels": (B,) long."""
        return super().collate_fn(items) | {"labels": torch.tensor([item["label"] for item in items])}


def _shortened(first, second, tokenizer, max_length):
    """Token ids of the prompt with both questions cut, the longer one first, until it fits into max_length tokens."""
    questions = [tokenizer.encode(first).ids, tokenizer.encode(second).ids]
    while True:
        ids = tokenizer.encode(
            PROMPT.format(first=tokenizer.decode(questions[0]), second=tokenizer.decode(questions[1]))
        ).ids
        if len(ids) <= max_length:
            return ids
        if not any(questions):
            raise UserError(f"the prompt alone does not fit into {max_length} tokens")
        sizes = [len(question) for question in questions]
        for _ in range(len(ids) - max_length):
            sizes[0 if sizes[0] >= sizes[1] else 1] -= 1
        questions = [question[: max(0, size)] for question, size in zip(questions, sizes, strict=True)]
