"""Movie reviews of the course: SST (Socher et al. 2013; one sentence, five classes from very negative to very positive)
and CFIMDB (whole reviews, negative or positive), and the rows as token ids.

Cleaning: lower case, white space collapsed (the course strips the ends only). A review that is too long for the
model loses its *beginning*: its class is read where it ends, and reviewers tend to end with their verdict. (The course
keeps the beginning; with GPT-2's 1,024 tokens none of its reviews is too long.)
"""

import torch
from tqdm import tqdm

from cli.script import say
from config import END_OF_TEXT
from datasets.batching import pad
from datasets.tsv import Table

_TOKENIZE_AT_ONCE = 4096  # rows: bounds the memory of the tokenizer's own bookkeeping


def load_sentiment_data(path, classes, split="train"):
    """The rows of a file: (sentence, label, id) or, for split="test", (sentence, id).

    classes: labels are 0, 1, ... below this number. How malformed rows are treated, and what raises UserError:
    `Table.rows`.
    """
    table = Table(path, split, ("sentence",), "sentiment", classes)
    rows = [(" ".join(text.lower().split()), *label, identifier) for (text,), label, identifier in table.rows()]
    counts = [sum(row[1] == label for row in rows) for label in range(classes)]
    labels = f", {' / '.join(map(str, counts))} of class 0 to {classes - 1}" if split != "test" else ""
    say(f"{path}: {len(rows)} reviews{labels}")
    table.report()
    return rows


class SentimentTestDataset:
    """Reviews as token ids, tokenised once. rows: as from load_sentiment_data(..., split="test").

    Of more than max_length tokens the last ones are kept. An empty review is one end-of-text token: it is answered,
    too. vectors: None, or (N, D), what a frozen GPT-2 makes of the rows; then batches bring it along.
    """

    def __init__(self, rows, tokenizer, max_length=1024):
        self.sentences, self.ids = [row[0] for row in rows], [row[-1] for row in rows]
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.vectors = None
        self.token_ids, self.num_shortened = [], 0
        for start in tqdm(range(0, len(rows), _TOKENIZE_AT_ONCE), "tokenising", leave=False, disable=None):
            for encoding in tokenizer.encode_batch_fast(self.sentences[start : start + _TOKENIZE_AT_ONCE]):
                ids = encoding.ids or [self.end_of_text]
                self.num_shortened += len(ids) > max_length
                self.token_ids.append(torch.tensor(ids[-max_length:], dtype=torch.int32))
        self.lengths = [len(ids) for ids in self.token_ids]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        item = {"token_ids": self.token_ids[index], "sentence": self.sentences[index], "id": self.ids[index]}
        return item if self.vectors is None else item | {"vector": self.vectors[index]}

    def collate_fn(self, items):
        """-> {"token_ids", "attention_mask"}: (B, T) long; "sents", "sent_ids": the rows' texts and ids; perhaps
        "vectors": (B, D)."""
        input_ids, attention_mask = pad([item["token_ids"] for item in items], self.end_of_text)
        batch = {
            "token_ids": input_ids,
            "attention_mask": attention_mask,
            "sents": [item["sentence"] for item in items],
            "sent_ids": [item["id"] for item in items],
        }
        return batch if self.vectors is None else batch | {"vectors": torch.stack([item["vector"] for item in items])}


class SentimentDataset(SentimentTestDataset):
    """The same with labels. rows: as from load_sentiment_data for training and dev files."""

    def __init__(self, rows, tokenizer, max_length=1024):
        super().__init__(rows, tokenizer, max_length)
        self.labels = [row[1] for row in rows]

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": self.labels[index]}

    def collate_fn(self, items):
        """As above, and "labels": (B,) long."""
        return super().collate_fn(items) | {"labels": torch.tensor([item["label"] for item in items])}
