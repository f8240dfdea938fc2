"""Parallel text: pairs of a sentence and its translation, their tokenizer, and batches under a budget of tokens."""

import random

from cli.flags import split_names
from cli.script import say
from config import END_OF_TEXT
from datasets.batching import pad
from datasets.tokenizer import train_bpe
from errors import check
from files import read_text


def load_pairs(paths, lowercase=False):
    """[(source, target)] of a tab-separated file, or of two files (a line each), named "SOURCE,TARGET"; .gz is read.

    White space at the ends of a sentence is dropped. Raises UserError for a pair that is not whole, with its line, and
    for two files of different length: every later pair would be shifted.
    """
    return _checked(_pairs_of(_read(paths)), paths, lowercase)


def load_sources(paths, lowercase=False):
    """[(source, target or None)]: as `load_pairs`, or the lines of a file without tabs, which has no translations."""
    files = _read(paths)
    (name, lines), *others = files.items()
    if others or any("\t" in line for line in lines):
        return _checked(_pairs_of(files), paths, lowercase)
    for number, line in enumerate(lines, start=1):
        check(line.strip(), f"{name}, line {number} is empty: there is nothing to translate; leave it out")
    say(f"{name}: {len(lines)} sentences without translations")
    return [((line.lower() if lowercase else line).strip(), None) for line in lines]


def _read(paths):
    """{path: its lines} of one file or two; blank lines at its end do not count."""
    names = split_names(paths)
    check(0 < len(names) <= 2, f"{paths}: give one tab-separated file, or two files as SOURCE,TARGET")
    return {name: read_text(name).rstrip("\n").split("\n") for name in names}


def _pairs_of(files):
    (name, lines), *others = files.items()
    if not others:
        return [_halves(line, name, number) for number, line in enumerate(lines, start=1)]
    ((other, targets),) = others
    check(
        len(lines) == len(targets),
        f"{name} has {len(lines)} lines, {other} {len(targets)}: they must be translations line by line",
    )
    return list(zip(lines, targets, strict=True))


def _halves(line, path, number):
    halves = line.split("\t")
    check(
        len(halves) == 2,
        f"{path}, line {number}: {len(halves)} fields; a line must be a sentence, a tab and its translation",
    )
    return halves


def _checked(pairs, paths, lowercase):
    pairs = [tuple(half.strip() for half in pair) for pair in pairs]
    for number, pair in enumerate(pairs, start=1):
        check(all(pair), f"{paths}, pair {number}: one of its sentences is empty; mend the file, or leave the pair out")
    say(f"{paths}: {len(pairs)} pairs")
    return [tuple(half.lower() for half in pair) for pair in pairs] if lowercase else pairs


def warn_of_known(pairs, training, path):
    """Say how many of the sentences to translate were trained on: their scores tell nothing."""
    known = {source for source, _ in training}
    number = sum(source in known for source, _ in pairs)
    if number:
        say(f"warning: {number} of {len(pairs)} sentences of {path} are in the training data, too")


def train_pair_tokenizer(pairs, vocab_size):
    """One byte-level BPE for both languages; a smaller one where the pairs give no more merges."""
    return train_bpe((half for pair in pairs for half in pair), vocab_size)


class TranslationDataset:
    """Pairs as token ids. A source ends, a target begins and ends with the end-of-text token.

    max_length: tokens of a sentence. While training (cut=False) longer pairs are left out, and that is said; sentences
    to translate are never left out: what is too long is cut, and said.
    """

    def __init__(self, pairs, tokenizer, max_length, cut=False):
        self.end = tokenizer.token_to_id(END_OF_TEXT)
        sides = []
        for side in (0, 1):
            encodings = tokenizer.encode_batch_fast([pair[side] or "" for pair in pairs])
            sides.append([encoding.ids for encoding in encodings])
        long = [place for place, ids in enumerate(zip(*sides, strict=True)) if max(map(len, ids)) > max_length]
        if long:
            what = "cut" if cut else "left out"
            say(f"{len(long)} of {len(pairs)} pairs are longer than {max_length} tokens: {what}")
        out = set() if cut else set(long)
        self.rows = [
            (place, [*source[:max_length], self.end], [self.end, *target[:max_length], self.end])
            for place, (source, target) in enumerate(zip(*sides, strict=True))
            if place not in out
        ]
        check(self.rows, f"no pair has at most {max_length} tokens: raise --max_length")
        self.lengths = [max(len(source), len(target) - 1) for _, source, target in self.rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def collate_fn(self, items):
        """-> {"source_ids", "source_mask"}: (B, S), {"target_ids", "target_mask"}: (B, T + 1) long; "sent_ids"."""
        source_ids, source_mask = pad([source for _, source, _ in items], self.end)
        target_ids, target_mask = pad([target for _, _, target in items], self.end)
        batch = {"source_ids": source_ids, "source_mask": source_mask}
        batch |= {"target_ids": target_ids, "target_mask": target_mask}
        return batch | {"sent_ids": [f"pair {place + 1}" for place, _, _ in items]}


class TokenBudgetBatches:
    """Endless shuffled batches of at most `budget` tokens each, padding counted (rows times the longest side), cut into
    epochs of `batches` batches: what the training loop wants.

    Rows are sorted by length, those of one length in an order that is drawn anew at every pass over the data, cut into
    batches, and the batches shuffled: a function of the seed and the pass alone, so that a resumed run sees what it
    would have seen. rank, world: this process and how many share the work.
    """

    def __init__(self, dataset, budget, batches, seed=0, rank=0, world=1):
        check(
            max(dataset.lengths) <= budget,
            f"a pair of {max(dataset.lengths)} tokens does not fit into a batch of {budget}: raise --batch_tokens",
        )
        self.dataset, self.budget, self.batches = dataset, budget, batches
        self.seed, self.rank, self.world = seed, rank, world
        self._ends, self._pass = [], (None, None)  # batches up to the end of each pass; the pass that is drawn

    def __len__(self):
        return self.batches

    @property
    def a_pass(self):
        """Batches of one pass over the data."""
        return len(self._of_pass(0))

    def epoch(self, number, start=0):
        """The batches of an epoch, counted from 1, from its batch `start` on."""
        for index in range((number - 1) * self.batches + start, number * self.batches):
            rows = self._rows(index * self.world + self.rank)
            yield self.dataset.collate_fn([self.dataset[row] for row in rows])

    def _rows(self, place):
        """The rows of the batch at a place in the endless row of all batches."""
        while not self._ends or place >= self._ends[-1]:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self._of_pass(len(self._ends))))
        number = next(number for number, end in enumerate(self._ends) if place < end)
        return self._of_pass(number)[place - (self._ends[number - 1] if number else 0)]

    def _of_pass(self, number):
        if self._pass[0] == number:
            return self._pass[1]
        draw, lengths = random.Random(f"{self.seed}-{number}"), self.dataset.lengths
        order = list(range(len(lengths)))
        draw.shuffle(order)
        order.sort(key=lengths.__getitem__)  # stable: rows of one length stay shuffled
        batches = [[]]
        for row in order:  # lengths rise: this row is the longest of its batch
            if lengths[row] * (len(batches[-1]) + 1) > self.budget:
                batches.append([])
            batches[-1].append(row)
        draw.shuffle(batches)
        self._pass = (number, batches)
        return batches


def dev_batches(dataset, budget):
    """Every row once, the longest first, under the same budget."""
    order = sorted(range(len(dataset)), key=lambda row: -dataset.lengths[row])
    place = 0
    while place < len(order):
        rows = order[place : place + max(1, budget // dataset.lengths[order[place]])]
        yield dataset.collate_fn([dataset[row] for row in rows])
        place += len(rows)
