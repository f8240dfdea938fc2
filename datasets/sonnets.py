"""Sonnet files: a header, then numbered sonnets (or three-line prompts), as the course hands them out."""

import re

from config import END_OF_TEXT
from datasets.batching import pad
from errors import UserError
from files import read_text

PROMPT_LINES, SONNET_LINES = 3, 14


def load_sonnets(path):
    """The sonnets of a file as strings; header and numbers dropped, line ends "\\n". Raises UserError."""
    # A number's own line end is only looked at, so that it can also begin the next number's match (an empty sonnet)
    sonnets = [block.strip() for block in re.split(r"\n\s*\d+[^\S\n]*(?=\n|$)", f"\n{read_text(path)}")[1:]]
    if not any(sonnets):
        raise UserError(f"{path} holds no sonnet: each must follow a line with its number")
    for number, sonnet in enumerate(sonnets, start=1):
        if not sonnet:
            raise UserError(f"{path}: the sonnet at place {number} is empty")
    return sonnets


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
