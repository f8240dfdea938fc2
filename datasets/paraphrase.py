"""Question pairs of the course (Quora): loading, cleaning, the prompt, and the rows as token ids."""

import re

import torch
from tqdm import tqdm

from cli.script import say
from config import ANSWERS, END_OF_TEXT
from datasets.batching import pad
from datasets.tokenizer import tokenizer_for
from errors import UserError
from files import read_text

# One wording for training, dev and test. The answer, "no" or "yes", is the next token.
PROMPT = 'Is "{first}" a paraphrase of "{second}"? Answer "yes" or "no": '
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
    reported (how many, and on which lines), but for the test file, where every id must be answered: there a row is
    answered with what it has. Raises UserError for a missing column, a label that is neither 0 nor 1, an id that comes
    twice or is not certain, a quotation mark that may hide rows, or a file without a usable row.
    """
    columns = _Columns(path, split)
    rows, cut_short, left_out, seen = [], [], [], {}
    for line, last, fields in _records(path, columns):
        first, second, identifier, *label = columns.of(fields)
        whole = columns.is_whole(fields)
        if not identifier or not (whole or split == "test"):
            left_out.append(line)
            continue
        if not whole:
            columns.check_id_is_certain(line, last)
            cut_short.append(line)
        identifier = identifier.lower()
        if identifier in seen:
            raise UserError(f"{path}: id {identifier[:80]} is on line {seen[identifier]} and again on line {line}")
        if split != "train":
            _check_can_be_answered(identifier, path, line)
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


class _Columns:
    """Where the columns are that a split needs, by the file's header. Raises UserError where one is not there once."""

    def __init__(self, path, split):
        self.path, self.names = path, ["sentence1", "sentence2", "id"] + ([] if split == "test" else ["is_duplicate"])
        self.places, self.number = [], 0

    def read(self, header):
        """Take the first line of the file as the header."""
        found = ", ".join(name or "(unnamed)" for name in header)
        found = found if len(found) <= 200 else f"{found[:200]}..."
        for name in sorted(self.names):
            if header.count(name) != 1:
                fault = "columns named" if name in header else "column"
                count = header.count(name) or "no"
                raise UserError(
                    f"{self.path} has {count} {fault} {name} (found: {found}): it must be tab-separated with a header "
                    "line"
                )
        self.places, self.number = [header.index(name) for name in self.names], len(header)

    def of(self, fields):
        """The values of sentence1, sentence2, id and perhaps is_duplicate; what is missing is empty."""
        return [fields[place].strip() if place < len(fields) else "" for place in self.places]

    def is_whole(self, fields):
        """Whether a record has as many fields as the header, and a label where there must be one."""
        return len(fields) == self.number and all(self.of(fields)[3:])

    def is_row(self, line):
        """Whether a line of text by itself is a record that could be used."""
        fields = line.split("\t")
        _, _, identifier, *label = self.of(fields)
        return len(fields) == self.number and bool(identifier) and all(_label_of(text) is not None for text in label)

    def check_id_is_certain(self, line, last):
        """Raise UserError for a malformed record that has an id, or perhaps several, of which nobody can be sure."""
        if self.places[2] > min(self.places[:2]) or line < last:
            raise UserError(
                f"{self.path}, line {line}: there are not {self.number} fields, so that its id is not certain: mend "
                "the line"
            )


def _records(path, columns):
    """(first line, last line, fields) of every row but blank lines; the header goes to columns.

    Fields are separated by tabs and may be quoted as in csv, tabs and line breaks inside included. Of the ways to read
    a row, the first that has the header's number of fields is taken: quoted; quoted within its line; split at every
    tab. A quotation mark that opens no such field is what somebody wrote. Raises UserError where two readings are
    sound: a quoted field with lines in it that are rows themselves.
    """
    text, place, line = read_text(path), 0, 1
    while place < len(text):
        end = text.find("\n", place)
        end = len(text) if end == -1 else end
        if columns.number:
            fields, end = _record(text, place, end, line, columns)
            yield line, line + text.count("\n", place, end), fields
        elif text[place:end].strip():
            columns.read(_quoted_fields(text, place, end)[0])
        line += text.count("\n", place, end) + 1
        place = end + 1
        while text.startswith("\n", place):
            place, line = place + 1, line + 1


def _record(text, start, line_end, line, columns):
    """(fields, end) of the record at text[start:], whose first line ends at line_end."""
    fields, end = _quoted_fields(text, start, len(text))
    if end > line_end:  # there are line breaks in it
        hidden = _hidden_row(text[start:end].split("\n"), columns)
        if columns.is_whole(fields):
            if hidden:
                raise UserError(
                    f"{columns.path}, line {line}: a quotation mark opens a field here that takes in the row of line "
                    f'{line + hidden}: remove the mark, or double it within quotation marks ("""like this)'
                )
            return fields, end
        if not hidden and not columns.is_row(text[start:line_end]):
            return fields, end
        fields = _quoted_fields(text, start, line_end)[0]
    if not columns.is_whole(fields):
        by_tabs = [_quoted_fields(part, 0, len(part))[0][0] for part in text[start:line_end].split("\t")]
        fields = by_tabs if columns.is_whole(by_tabs) else fields
    return fields, line_end


def _hidden_row(lines, columns):
    """Which of the lines of a quoted record seems to be a row of its own, or None. The first is the record's.

    The last one only counts where the first is a row, too: else neither could do without the other.
    """
    rows = [number for number, line in enumerate(lines) if columns.is_row(line)]
    inner = [number for number in rows if number > 0 and (number < len(lines) - 1 or rows[0] == 0)]
    return inner[0] if inner else None


_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"(?=[\t\n]|\Z)')  # possessive: no backtracking, linear in the text
_UNQUOTED = re.compile(r"[^\t\n]*")


def _quoted_fields(text, start, stop):
    """(fields, end) of the record at text[start:stop] as csv has it. Within quotes "" stands for one mark."""
    fields, place = [], start
    while True:
        found = _QUOTED.match(text, place, stop) or _UNQUOTED.match(text, place, stop)
        fields.append(found[1].replace('""', '"') if found.re is _QUOTED else found[0])
        place = found.end()
        if place >= stop or text[place] == "\n":
            return fields, place
        place += 1  # the tab


def _label_of(text):
    """0, 1 or None for what is no label."""
    try:
        label = float(text)
    except ValueError:
        return None
    return int(label) if label in (0.0, 1.0) else None


def _label(text, path, line):
    label = _label_of(text)
    if label is None:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise UserError(f"{path}, line {line}: is_duplicate is {shown!r}, it must be 0 or 1")
    return label


def _check_can_be_answered(identifier, path, line):
    """The hand-in has a line an id, and a comma behind it."""
    if "," in identifier or not identifier.isprintable():
        raise UserError(
            f"{path}, line {line}: the id {identifier[:40]!r} has a comma or a control character, which the file of "
            "answers cannot hold: rename it"
        )


class ParaphraseDetectionTestDataset:
    """Pairs as token ids, tokenised once. rows: as from load_paraphrase_data(..., split="test").

    tokenizer: or, as the course's code has it, the parsed flags: then GPT-2's own.

    A pair that is too long for max_length tokens has its *questions* shortened, the longer one first; the end of the
    prompt, where the answer is read, is always whole.
    """

    def __init__(self, rows, tokenizer, max_length=1024):
        tokenizer = tokenizer_for(tokenizer)
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
