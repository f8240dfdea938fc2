"""Sonnet files: a header, then numbered sonnets (or three-line prompts), as the course hands them out; or a table."""

import itertools
import re
import statistics
import unicodedata
from pathlib import Path

from cli.script import say
from config import END_OF_TEXT
from datasets.batching import pad
from datasets.sonnet_tables import QUOTED, SUFFIXES, is_table, read_column
from datasets.tokenizer import tokenizer_for
from errors import UserError, check
from files import read_text

PROMPT_LINES, SONNET_LINES = 3, 14
MOST_LINES = 18  # of a sonnet; the course's longest has 15
FEW_WORDS = 4  # so many at most has a heading
_ROMAN = r"(?=[IVXLC])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
# A heading that goes on with a title
_TITLE = re.compile(rf"(?i:sonnet|소네트)\W+(?:제?\d+번?|{_ROMAN})\s*[:.\u2013\u2014-].*")
_LIKE_A_TITLE = re.compile(r"(?i:sonnet|소네트)\b(?:\s+\S+){0,3}\s*|\d+[.):]\s.*")  # "Sonnet the First", "18. A title"
# A line that is nothing but a number, dressed in whatever marks and perhaps called a sonnet; a Roman one in capitals
_NUMBER = r"(?i:(?:sonnet|소네트|number|no)[\W_]*)?(?:제\s*)?(\d+)(?:\s*(?:번째?|편))?"  # in Korean, too: 소네트 제18번
_HEADING = re.compile(rf"[\W_]*(?:{_NUMBER}|(?i:(?:sonnet|소네트)\W+)?({_ROMAN}))[\W_]*")


def load_sonnets(path):
    """The sonnets of a file as strings; header and numbers dropped, line ends "\\n".

    Raises UserError, with the line, where it is not certain that each number begins a sonnet, and each sonnet has one.
    Of a table (.csv, .tsv; datasets/sonnet_tables.py) each row is a sonnet.
    """
    text = read_text(path)
    if is_table(path, text):
        return _load_table(path, text)
    lines = text.splitlines()
    starts = [place for place, line in enumerate(lines) if is_heading(line)]
    sonnets = [lines[start + 1 : stop] for start, stop in itertools.pairwise([*starts, len(lines)])]
    texts = ["\n".join(sonnet).strip() for sonnet in sonnets]
    if not any(texts):
        quoted = f"; in a table {QUOTED}" if Path(path).suffix.lower() in SUFFIXES else ""
        raise UserError(f"{path} holds no sonnet: each must follow a line with its number{quoted}")
    _check_header(lines[: starts[0]], path)
    for place, (start, sonnet) in enumerate(zip(starts, sonnets, strict=True), start=1):
        if not texts[place - 1]:
            raise UserError(f"{path}: the sonnet at place {place} is empty (line {start + 1} numbers it)")
        _check_sonnet(sonnet, start + 1, path)
    _check_numbers([lines[start] for start in starts], starts, [len(lines_of(text)) for text in texts], path)
    return texts


def _load_table(path, text):
    """The sonnets of a table; what stands above the verse in a field, a number or "Sonnet 18: a title", is left out."""
    column, fields = read_column(path, text)
    texts, titles = [], []
    for line, field in fields:
        lines = field.splitlines()
        while lines and (not lines[0].strip() or is_heading(lines[0].upper()) or _TITLE.fullmatch(_visible(lines[0]))):
            titles += [lines[0]] if _TITLE.fullmatch(_visible(lines[0])) else []
            lines.pop(0)
        _check_row(lines, f"{path}, line {line}: the sonnet of this row")
        texts.append("\n".join(lines).strip())
    say(f"{path}: a table, whose column {column} holds {len(texts)} sonnets")
    if titles:
        say(f"{path}: {len(titles)} titles left out, the first {_visible(titles[0])[:60]!r}")
    return texts


def _check_row(lines, who):
    """Raise UserError where a row holds no sonnet, or may hold several, or a title. who: what messages begin with."""
    count = sum(bool(line.strip()) for line in lines)
    advice = "give each sonnet a row, and a title a column of its own"
    check(count, f"{who} is empty: fill it, or remove the row")
    check(count <= MOST_LINES, f"{who} has {count} lines: {advice}")
    like = [is_heading(line) or (place == 0 and _LIKE_A_TITLE.fullmatch(line)) for place, line in enumerate(lines)]
    heading = next((line for line, found in zip(lines, like, strict=True) if found), None)
    if heading is None and (place := _heading_unlike_a_number(lines, first=True)) is not None:
        heading = lines[place]
    if heading is not None:
        raise UserError(f"{who} has a line {_visible(heading)[:40]!r}, which stands there as a heading does: {advice}")


def _check_sonnet(lines, heading, path):
    """Raise UserError where a sonnet may be several. heading: the line of the file with its number."""
    count = sum(bool(line.strip()) for line in lines)
    if count > MOST_LINES:
        raise UserError(
            f"{path}: the sonnet that begins at line {heading} has {count} lines: is a heading in it no number on a "
            "line of its own? Give each sonnet such a line"
        )
    place = _heading_unlike_a_number(lines)
    if place is not None:
        raise UserError(
            f"{path}, line {heading + 1 + place}: {_visible(lines[place])[:40]!r} stands alone as a heading does: make "
            "it a number if it begins a sonnet, else put it beside a line of its sonnet, or remove it"
        )


def _heading_unlike_a_number(lines, first=False):
    """Where in a sonnet a short line stands between blank ones, while the others stand together; or None.

    first: the first line, which follows no blank one, counts as well, and be it long.
    """
    blank = [not line.strip() for line in lines]
    alone = [
        not blank[i] and all(blank[i - 1 : i]) and all(blank[i + 1 : i + 2]) and (first or not all(blank[:i]))
        for i in range(len(lines))
    ]
    together = any(not one and not other for one, other in itertools.pairwise(blank))
    short = [i for i, line in enumerate(lines) if alone[i] and (len(line.split()) <= FEW_WORDS or i == 0)]
    return short[0] if short and together else None


def _check_header(lines, path):
    """Raise UserError where what stands before the first number seems to hold a sonnet, or the lines of a prompt."""
    paragraphs = [list(group) for filled, group in itertools.groupby(lines, lambda line: bool(line.strip())) if filled]
    if any(len(paragraph) >= PROMPT_LINES for paragraph in paragraphs[1:]):
        place = lines.index(next(p for p in paragraphs[1:] if len(p) >= PROMPT_LINES)[0])
        raise UserError(
            f"{path}, line {place + 1}: these lines follow no number: give their sonnet a line with its number, or "
            "shorten the header"
        )
    if len(lines_of("\n".join(lines))) >= SONNET_LINES:
        raise UserError(
            f"{path}: its first number comes only on line {len(lines) + 1}: is the first sonnet without one?"
        )


def _check_numbers(headings, starts, lengths, path):
    """Raise UserError for a number out of turn that cuts a sonnet, and for one that is missing between two.

    Cut: the two parts together are no longer than most sonnets. Missing: one sonnet is twice as long as most.
    """
    numbers = [_number(heading) for heading in headings]
    for place in range(1, len(numbers)):
        others = lengths[: place - 1] + lengths[place + 1 :]
        if numbers[place] == numbers[place - 1] + 1 or not others:
            continue
        before, after, usual = lengths[place - 1], lengths[place], statistics.mode(others)
        where, shown = f"{path}, line {starts[place] + 1}", _visible(headings[place])[:20]
        if before + after <= usual:
            raise UserError(
                f"{where}: the number {shown} cuts a sonnet into parts of {before} and {after} lines: if it is a line "
                "of it, join it to another"
            )
        if before >= 2 * usual and numbers[place] > numbers[place - 1]:
            raise UserError(
                f"{where}: the number {shown} comes after {_visible(headings[place - 1])[:20]}, and between them are "
                f"{before} lines: if these are two sonnets, number the second"
            )


def _visible(line):
    """A line without invisible characters (zero-width spaces, byte-order marks) and white space around it."""
    return "".join(mark for mark in line if unicodedata.category(mark) != "Cf").strip()


def is_heading(line):
    """Whether a line numbers a sonnet: 12, ### 12 ###, Sonnet 12, XII, 소네트 제12번, with invisible marks or not."""
    return _HEADING.fullmatch(_visible(line)) is not None


def _number(heading):
    """The number of a heading, at most nine digits of it."""
    digits, roman = _HEADING.fullmatch(_visible(heading)).groups()
    if digits:
        return int(digits[-9:])
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in roman]
    return sum(-value if value < after else value for value, after in itertools.pairwise([*values, 0]))


def check_whole(sonnets, path):
    """Raise UserError for a sonnet that ends where a prompt does: it has nothing to be learned or compared."""
    for place, sonnet in enumerate(sonnets, start=1):
        if len(lines_of(sonnet)) <= PROMPT_LINES:
            raise UserError(
                f"{path}: the sonnet at place {place} has no line {PROMPT_LINES + 1}, as a prompt has none: "
                "give the file with the whole sonnets"
            )


def check_unfinished(prompts, path):
    """Raise UserError for a prompt to which no line can be added."""
    for place, prompt in enumerate(prompts, start=1):
        count = len(lines_of(prompt))
        if count >= SONNET_LINES:
            raise UserError(
                f"{path}: the prompt at place {place} has {count} lines, nothing could be added to it: give the file "
                f"with the prompts (their first {PROMPT_LINES} lines)"
            )


def warn_of_known(sonnets, training, path):
    """Say how many sonnets (or prompts) begin as a training sonnet does."""
    seen = {tuple(head_of(sonnet).split()) for sonnet in training}
    known = sum(tuple(head_of(sonnet).split()) in seen for sonnet in sonnets)
    if known:
        say(f"{path}: {known} of {len(sonnets)} are training sonnets, too: their scores say little")


def verses(text):
    """The lines of a text that are not blank; what reads as the number of a sonnet joins the line before or after."""
    lines = []
    for line in map(str.rstrip, lines_of(text)):
        lines.append(line)
        while len(lines) > 1 and (is_heading(lines[-1]) or is_heading(lines[0])):
            lines[-2:] = [f"{lines[-2]} {lines[-1].lstrip()}"]
    return lines


def format_sonnets(sonnets):
    """The course's hand-in format, from which `load_sonnets` reads the same sonnets.

    A line that would be read as the next sonnet's number joins its neighbour. Raises UserError for a text of no words.
    """
    texts = ["\n".join(verses(sonnet)) for sonnet in sonnets]
    for place, text in enumerate(texts):
        if not text or is_heading(text):
            raise UserError(f"the sonnet for prompt {place} is {text[:20]!r}: without words it cannot be handed in")
    return "--Generated Sonnets-- \n\n" + "".join(f"\n{index}\n{text}\n\n" for index, text in enumerate(texts))


class SonnetsDataset:
    """Sonnets as token ids, tokenised once, each followed by a real end-of-text token.

    source: a path, or a list of strings. tokenizer: None means GPT-2's own, as the course's code has it. Raises
    UserError for a sonnet that is longer than max_length tokens.
    """

    def __init__(self, source, tokenizer=None, max_length=1024):
        tokenizer = tokenizer_for(tokenizer)
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
