"""Question pairs of the course (Quora): loading, cleaning, the prompt, and the rows as token ids."""

import csv
import io
import re

import torch
from tqdm import tqdm

from cli.script import say
from config import ANSWERS, END_OF_TEXT
from datasets.batching import pad
from datasets.tokenizer import tokenizer_for
from datasets.tsv import Table
from errors import UserError

# One wording for training, dev and test. The answer, "no" or "yes", is the next token.
PROMPT = 'Is "{first}" a paraphrase of "{second}"? Answer "yes" or "no": '
_BEFORE, _BETWEEN = re.split(r"{first}|{second}", PROMPT)[:2]
TOKENIZE_AT_ONCE = 4096  # rows: bounds the memory of the tokenizer's own bookkeeping


def preprocess_string(text):
    """The course's cleaning: lower case, a space before . ? , and ', white space collapsed."""
    text = text.lower()
    for mark in ".?,'":
        text = text.replace(mark, f" {mark}")
    return " ".join(text.split())


def load_paraphrase_data(path, split="train"):
    """The rows of a file: (sentence1, sentence2, label, id) or, for split="test", (sentence1, sentence2, id).

    How malformed rows are treated, and what raises UserError: `Table.rows`.
    """
    table = Table(path, split, ("sentence1", "sentence2"), "is_duplicate", classes=2)
    rows = [(*map(preprocess_string, texts), *label, identifier) for texts, label, identifier in table.rows()]
    positive = f", {sum(row[2] for row in rows)} of them paraphrases" if split != "test" else ""
    say(f"{path}: {len(rows)} pairs{positive}")
    table.report()
    return rows


def format_rows(rows):
    """The text of a training file with these rows, as load_paraphrase_data reads it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "sentence1", "sentence2", "is_duplicate"])
    writer.writerows((identifier, first, second, float(label)) for first, second, label, identifier in rows)
    return text.getvalue()


class ParaphraseDetectionTestDataset:
    """Pairs as token ids, tokenised once. rows: as from load_paraphrase_data(..., split="test").

    tokenizer: or, as the course's code has it, the parsed flags: then that of their model_path or model_size.
    token_types: whether batches say which tokens are the questions', which aligned pooling reads.

    A pair that is too long for max_length tokens has its *questions* shortened, the longer one first; the end of the
    prompt, where the answer is read, is always whole.
    """

    def __init__(self, rows, tokenizer, max_length=1024, token_types=False):
        tokenizer = tokenizer_for(tokenizer)
        self.ids = [row[-1] for row in rows]
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        for word, token_id in ANSWERS.items():
            if tokenizer.encode(word).ids != [token_id]:
                raise UserError(f'the tokenizer has no token "{word}" with id {token_id}: use one that shares GPT-2\'s')
        self.token_ids, self.token_types, self.num_shortened = [], [] if token_types else None, 0
        for start in tqdm(range(0, len(rows), TOKENIZE_AT_ONCE), "tokenising", leave=False, disable=None):
            pairs = [row[:2] for row in rows[start : start + TOKENIZE_AT_ONCE]]
            prompts = [PROMPT.format(first=first, second=second) for first, second in pairs]
            for pair, encoding in zip(pairs, tokenizer.encode_batch(prompts), strict=True):
                if len(encoding) > max_length:
                    pair, encoding = _shortened(*pair, tokenizer, max_length)
                    self.num_shortened += 1
                self.token_ids.append(torch.tensor(encoding.ids, dtype=torch.int32))
                if token_types:
                    self.token_types.append(torch.tensor(_token_types(*pair, encoding.offsets), dtype=torch.int8))
        self.lengths = [len(ids) for ids in self.token_ids]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        types = {} if self.token_types is None else {"token_type_ids": self.token_types[index]}
        return {"token_ids": self.token_ids[index], "id": self.ids[index]} | types

    def collate_fn(self, items):
        """-> {"token_ids", "attention_mask"}: (B, T) long; "sent_ids": the rows' ids.

        With token_types, "token_type_ids" too, (B, T) long: 1 in the first question, 2 in the second, 0 elsewhere.
        """
        input_ids, attention_mask = pad([item["token_ids"] for item in items], self.end_of_text)
        batch = {"token_ids": input_ids, "attention_mask": attention_mask, "sent_ids": [item["id"] for item in items]}
        if self.token_types is not None:
            batch["token_type_ids"], _ = pad([item["token_type_ids"] for item in items], 0)
        return batch


class ParaphraseDetectionDataset(ParaphraseDetectionTestDataset):
    """The same with labels, 0 or 1. rows: as from load_paraphrase_data for training and dev files."""

    def __init__(self, rows, tokenizer, max_length=1024, token_types=False):
        super().__init__(rows, tokenizer, max_length, token_types)
        self.labels = [row[2] for row in rows]

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": self.labels[index]}

    def collate_fn(self, items):
        """As above, and "labels": (B,) long."""
        return super().collate_fn(items) | {"labels": torch.tensor([item["label"] for item in items])}


def _token_types(first, second, offsets):
    """0, 1 or 2 for each token of the pair's prompt. offsets: where each begins and ends in it.

    A token that has letters of a question is that question's, even if it takes in a mark that stands beside it.
    """
    begins = (len(_BEFORE), len(_BEFORE) + len(first) + len(_BETWEEN))
    ends = (begins[0] + len(first), begins[1] + len(second))
    return [next((1 + i for i in range(2) if start < ends[i] and end > begins[i]), 0) for start, end in offsets]


def _shortened(first, second, tokenizer, max_length):
    """(both questions, cut, the longer one first, until their prompt fits into max_length tokens; its encoding)."""
    questions = [tokenizer.encode(first).ids, tokenizer.encode(second).ids]
    while True:
        texts = [tokenizer.decode(ids).rstrip("\ufffd") for ids in questions]  # half a letter is none
        encoding = tokenizer.encode(PROMPT.format(first=texts[0], second=texts[1]))
        if len(encoding) <= max_length:
            return texts, encoding
        if not any(questions):
            raise UserError(f"the prompt alone does not fit into {max_length} tokens")
        sizes = [len(question) for question in questions]
        for _ in range(len(encoding) - max_length):
            sizes[0 if sizes[0] >= sizes[1] else 1] -= 1
        questions = [question[: max(0, size)] for question, size in zip(questions, sizes, strict=True)]
