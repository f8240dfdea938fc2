"""Tab-separated tables of the course: texts, an id and perhaps a label a row, read robustly.

The files are meant as csv has it (quotation marks, doubled within, around what holds tabs or line ends) and hold slips:
marks that nobody closes, tabs inside a text, rows that end early, a header that begins with a column without a name or
named 0. What a row says is taken where there is one sound way to read it; else it is left out and reported, or refused.
"""

import re

from cli.script import say
from errors import UserError
from files import read_text


class Table:
    """A file, by the columns that a split needs: its texts, `id` and, but for split="test", its label.

    texts: names of the columns of text. label: the name of the label's column; classes: it is one of 0, 1, ... below
    this number.
    """

    def __init__(self, path, split, texts, label, classes):
        self.path, self.split, self.label, self.classes = path, split, label, classes
        self.names = [*texts, "id"] + ([] if split == "test" else [label])
        self.number_of_texts = len(texts)
        self.places, self.number = [], 0
        self.left_out, self.cut_short = [], []  # lines of malformed rows

    def rows(self):
        """[(texts, label, id)]: texts as they stand, id in lower case; label is (class,), () in the test file.

        Rows with fewer or more fields than the header has (a tab inside a text shifts the others) are left out, but for
        the test file, where every id must be answered: there a row is answered with what it has. Raises UserError for a
        missing column, a label that is none, an id that comes twice or is not certain, a quotation mark that may hide
        rows, or a file without a usable row.
        """
        rows, seen = [], {}
        for line, last, fields in _records(self):
            texts, identifier, label = self.of(fields)
            whole = self.is_whole(fields)
            if not identifier or not (whole or self.split == "test"):
                self.left_out.append(line)
                continue
            if not whole:
                self.check_id_is_certain(line, last)
                self.cut_short.append(line)
            identifier = identifier.lower()
            if identifier in seen:
                raise UserError(
                    f"{self.path}: id {identifier[:80]} is on line {seen[identifier]} and again on line {line}"
                )
            if self.split != "train":
                self.check_can_be_answered(identifier, line)
            seen[identifier] = line
            rows.append((texts, tuple(self.checked_class(text, line) for text in label), identifier))
        if not rows:
            raise UserError(
                f"{self.path} has no usable row ({len(self.left_out)} malformed): check that it is tab-separated"
            )
        return rows

    def report(self):
        """Say which rows were malformed."""
        for lines, outcome in ((self.left_out, "left out"), (self.cut_short, "answered with what they have")):
            if lines:
                where = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
                say(f"{self.path}: {len(lines)} malformed rows {outcome} (lines {where})")

    # --- columns -----------------------------------------------------------------------------------------------------

    def read_header(self, header):
        """Take the first line of the file as the header. Raises UserError where a column is not there once."""
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
        """(texts, id, [label], or [] in the test file); what is missing is empty."""
        values = [fields[place].strip() if place < len(fields) else "" for place in self.places]
        return values[: self.number_of_texts], values[self.number_of_texts], values[self.number_of_texts + 1 :]

    def is_whole(self, fields):
        """Whether a record has as many fields as the header, and a label where there must be one."""
        return len(fields) == self.number and all(self.of(fields)[2])

    def is_row(self, line):
        """Whether a line of text by itself is a record that could be used."""
        fields = line.split("\t")
        _, identifier, label = self.of(fields)
        return len(fields) == self.number and bool(identifier) and all(self.class_of(t) is not None for t in label)

    def check_id_is_certain(self, line, last):
        """Raise UserError for a malformed record that has an id, or perhaps several, of which nobody can be sure."""
        *texts, identifier = self.places[: self.number_of_texts + 1]
        if identifier > min(texts) or line < last:
            raise UserError(
                f"{self.path}, line {line}: there are not {self.number} fields, so that its id is not certain: mend "
                "the line"
            )

    # --- values ------------------------------------------------------------------------------------------------------

    def class_of(self, text):
        """The class that a label names, or None for what is no label."""
        try:
            label = float(text)
        except ValueError:
            return None
        return int(label) if label in range(self.classes) else None

    def checked_class(self, text, line):
        label = self.class_of(text)
        if label is None:
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            *most, last = map(str, range(self.classes))
            wanted = f"{', '.join(most)} or {last}"
            raise UserError(f"{self.path}, line {line}: {self.label} is {shown!r}, it must be {wanted}")
        return label

    def check_can_be_answered(self, identifier, line):
        """The hand-in has a line an id, and a comma behind it."""
        if "," in identifier or not identifier.isprintable():
            raise UserError(
                f"{self.path}, line {line}: the id {identifier[:40]!r} has a comma or a control character, which the "
                "file of answers cannot hold: rename it"
            )


def _records(table):
    """(first line, last line, fields) of every row but blank lines; the header goes to the table.

    Fields are separated by tabs and may be quoted as in csv, tabs and line breaks inside included. Of the ways to read
    a row, the first that has the header's number of fields is taken: quoted; quoted within its line; split at every
    tab. A quotation mark that opens no such field is what somebody wrote. Raises UserError where two readings are
    sound: a quoted field with lines in it that are rows themselves.
    """
    text, place, line = read_text(table.path), 0, 1
    while place < len(text):
        end = text.find("\n", place)
        end = len(text) if end == -1 else end
        if table.number:
            fields, end = _record(text, place, end, line, table)
            yield line, line + text.count("\n", place, end), fields
        elif text[place:end].strip():
            table.read_header(_quoted_fields(text, place, end)[0])
        line += text.count("\n", place, end) + 1
        place = end + 1
        while text.startswith("\n", place):
            place, line = place + 1, line + 1


def _record(text, start, line_end, line, table):
    """(fields, end) of the record at text[start:], whose first line ends at line_end."""
    fields, end = _quoted_fields(text, start, len(text))
    if end > line_end:  # there are line breaks in it
        hidden = _hidden_row(text[start:end].split("\n"), table)
        if table.is_whole(fields):
            if hidden:
                raise UserError(
                    f"{table.path}, line {line}: a quotation mark opens a field here that takes in the row of line "
                    f'{line + hidden}: remove the mark, or double it within quotation marks ("""like this)'
                )
            return fields, end
        if not hidden and not table.is_row(text[start:line_end]):
            return fields, end
        fields = _quoted_fields(text, start, line_end)[0]
    if not table.is_whole(fields):
        by_tabs = [_quoted_fields(part, 0, len(part))[0][0] for part in text[start:line_end].split("\t")]
        fields = by_tabs if table.is_whole(by_tabs) else fields
    return fields, line_end


def _hidden_row(lines, table):
    """Which of the lines of a quoted record seems to be a row of its own, or None. The first is the record's.

    The last one only counts where the first is a row, too: else neither could do without the other.
    """
    rows = [number for number, line in enumerate(lines) if table.is_row(line)]
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


def format_answers(title, ids, answers, possible):
    """The course's hand-in file: every id once, in the input's order. answers: {id: one of the possible ones}."""
    if len(set(ids)) != len(ids) or answers.keys() != set(ids) or not set(answers.values()) <= set(possible):
        raise RuntimeError(f"{len(answers)} answers for {len(ids)} ids: not one for each, or none of {list(possible)}")
    return f"id \t {title} \n" + "".join(f"{identifier}, {answers[identifier]} \n" for identifier in ids)
