"""Sonnet files: a header, then numbered sonnets (or three-line prompts), as the course hands them out."""

import re
import unicodedata

from config import END_OF_TEXT
from datasets.batching import pad
from errors import UserError
from files import read_text

PROMPT_LINES, SONNET_LINES = 3, 14
MOST_LINES = 18  # of a sonnet; the course's longest has 15
# A line that is nothing but a number, dressed in whatever marks and perhaps called a sonnet; a Roman one in capitals
_HEADING = re.compile(r"\W*(?:(?i:(?:sonnet|number|no)\W*)?\d+|(?i:sonnet\W+)?[IVXLC]+)\W*")


def load_sonnets(path):
    """The sonnets of a file as strings; header and numbers dropped, line ends "\\n". Raises UserError.

    A sonnet of more lines than any has is refused by its line: a heading in it was not recognised.
    """
    starts, sonnets = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if is_heading(line):
            starts.append(number)
            sonnets.append([])
        elif sonnets:
            sonnets[-1].append(line)
    texts = ["\n".join(lines).strip() for lines in sonnets]
    if not any(texts):
        raise UserError(f"{path} holds no sonnet: each must follow a line with its number")
    for place, (start, text) in enumerate(zip(starts, texts, strict=True), start=1):
        if not text:
            raise UserError(f"{path}: the sonnet at place {place} is empty")
        count = len(lines_of(text))
        if count > MOST_LINES:
            raise UserError(
                f"{path}: the sonnet that begins at line {start} has {count} lines: is a heading in it no number on a "
                "line of its own? Give each sonnet such a line"
            )
    return texts


def is_heading(line):
    """Whether a line numbers a sonnet: 12, 12., ### 12 ###, Sonnet 12, XII, with invisible characters or without."""
    visible = "".join(mark for mark in line if unicodedata.category(mark) != "Cf").strip()
    return _HEADING.fullmatch(visible) is not None


def check_whole(sonnets, path):
    """Raise UserError for a sonnet that ends where a prompt does: it has nothing to be learned or compared."""
    for place, sonnet in enumerate(sonnets, start=1):
        if len(lines_of(sonnet)) <= PROMPT_LINES:
            raise UserError(
                f"{path}: the sonnet at place {place} has no line {PROMPT_LINES + 1}, as a prompt has none: "
                "give the file with the whole sonnets"
            )


def format_sonnets(sonnets):
    """The course's hand-in format. A line that would be read as the next sonnet's number joins the line before it."""
    texts = []
    for sonnet in sonnets:
        lines = []
        for line in sonnet.splitlines():
            if lines and is_heading(line):
                lines[-1] += f" {line.strip()}"
            else:
                lines.append(line)
        texts.append("\n".join(lines))
    return "--Generated Sonnets-- \n\n" + "".join(f"\n{index}\n{text}\n\n" for index, text in enumerate(texts))


class SonnetsDataset:
    """Sonnets as token ids, tokenised once, each followed by a real end-of-text token.

    source: a path, or a list of strings. Raises UserError for a sonnet that is longer than max_length tokens.
    """

    def __init__(self, source, tokenizer, max_length=1024):
        self.texts = list(source) if isinstance(source, (list, tuple)) else load_sonnets(source)
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.rows = [[*encoding.ids, self.end_of_text] for encoding in tokenizer.encode_batch(self.texts)]
        self.lengths = [len(row) for row in self.rows]
        for text, length in zip(self.texts, self.lengths, strict=True):
            if length > max_length:
                first_line = text.splitlines()[0]
                raise UserError(
                    f'the sonnet "{first_line}" has {length} tokens, the model takes {max_length}: shorten it'
                )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return index, self.rows[index]

    def collate_fn(self, items):
        """-> {"token_ids", "attention_mask"}: (B, T) long; "sent_ids": the sonnets' places in the file."""
        input_ids, attention_mask = pad([row for _, row in items], self.end_of_text)
        return {"token_ids": input_ids, "attention_mask": attention_mask, "sent_ids": [index for index, _ in items]}


def lines_of(text):
    """The lines of a text that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def head_of(sonnet, lines=PROMPT_LINES):
    """The first lines of a sonnet: what is given."""
    return "\n".join(lines_of(sonnet)[:lines])


def tail_of(sonnet, lines=PROMPT_LINES):
    """The sonnet from line 4 on: what is to be written."""
    return "\n".join(lines_of(sonnet)[lines:])
