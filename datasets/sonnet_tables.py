"""Sonnets as one column of a table (.csv or .tsv): which column, and what stands in its rows.

A sonnet is one field, its line breaks within quotation marks, as csv (RFC 4180) has them and pandas writes them; other
columns (a number, a title) may stand beside it. The delimiter is the one of comma, tab and semicolon that gives each
row as many fields as the header has. The column is told by what it holds: lines of verse.
"""

import csv
import io
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from errors import UserError, check

SUFFIXES, DELIMITERS = (".csv", ".tsv"), ",\t;"
TEXT_NAMES = ("text", "sonnet", "sonnet_text", "poem", "content", "body", "verse", "verses", "lines")
QUOTED = "a sonnet is one field in quotation marks, its line breaks inside"


def is_table(path, text):
    """Whether a file holds a table: by its suffix or, whatever that is, by a header over quoted fields.

    Without quotation marks no field can have several lines: such a file is read as numbered sonnets.
    """
    if '"' not in text:
        return False
    if Path(path).suffix.lower() in SUFFIXES:
        return True
    header, *rest = [line for line in text.splitlines() if line.strip()][:2]
    names = [[name.strip(' "').lower() for name in header.split(delimiter)] for delimiter in DELIMITERS]
    return any(len(found) > 1 and not set(found).isdisjoint(TEXT_NAMES) for found in names) and '"' in "".join(rest)


@dataclass
class _Reading:
    """A table as one delimiter cuts it. rows: [(first line in the file, fields)]; fault: why it is none."""

    delimiter: str
    header: list | None  # None: there is none
    rows: list
    fault: str | None

    @property
    def verses(self):
        """The places of the columns of which half the fields at least have several lines."""
        width = len(self.rows[0][1]) if self.rows else 0
        several = [[len(_filled(fields[place])) > 1 for _, fields in self.rows] for place in range(width)]
        return [place for place, column in enumerate(several) if 2 * sum(column) >= len(column)]

    def name(self, place):
        return repr(self.header[place]) if self.header else str(place + 1)


def read_column(path, text):
    """(the column's name, [(line in the file, the field)]) of the column with the sonnets. Raises UserError."""
    readings = [_read(text, delimiter) for delimiter in DELIMITERS]
    sound = [reading for reading in readings if not reading.fault and reading.verses]
    if not sound:
        likely = max(readings, key=lambda reading: len(reading.header or ()))
        raise UserError(f"{path}{likely.fault or ': no column holds lines of verse'}: {QUOTED}")
    table = max(sound, key=lambda reading: len(reading.rows[0][1]))
    marked = any('"' in name for name in table.header or ())
    check(not marked, f"{path}: a name of its header has a quotation mark in it: is the line break after it lost?")
    place = _choose(table, path)
    _check_swallowed(table, place, path)
    return table.name(place), [(line, fields[place]) for line, fields in table.rows]


def _read(text, delimiter):
    rows, line, fault = [], 1, None
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(map(str.strip, fields)):
                rows.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        fault = f", line {line}: the row that begins here is no csv ({error})"
    for start, fields in rows:
        if len(fields) != len(rows[0][1]):
            fault = f", line {start}: {len(fields)} fields where the first row has {len(rows[0][1])}"
            break
    has_header = bool(rows) and not any(len(_filled(field)) > 1 for field in rows[0][1])  # a name has no two lines
    header = [name.strip() for name in rows[0][1]] if has_header else None
    return _Reading(delimiter, header, rows[1:] if has_header else rows, fault)


def _choose(table, path):
    """The place of the column with the sonnets; where several hold verse, a name out of TEXT_NAMES tells."""
    places = table.verses
    named = [place for place in places if table.header and table.header[place].lower() in TEXT_NAMES]
    if len(named) != 1 and len(places) > 1:
        found = " and ".join(table.name(place) for place in places)
        raise UserError(f"{path}: the columns {found} hold lines of verse: leave one of them, or call one text")
    return named[0] if named else places[0]


def _check_swallowed(table, place, path):
    """Raise UserError where a field seems to hold the next row, too, or a part of one: a quotation mark is astray."""
    counts = [len(_filled(fields[place])) for _, fields in table.rows]
    numbered = all(fields[0].strip().isdigit() for _, fields in table.rows)
    a_row = re.compile(rf"\s*\d+{table.delimiter}")
    for number, (line, fields) in enumerate(table.rows):
        count, others = counts[number], counts[:number] + counts[number + 1 :]
        usual = statistics.mode(others) if len(others) > 1 else max(counts)
        longer = count > min(others, default=0)
        faults = {
            f"has {count} lines where most have {usual}": count >= max(2, 2 * usual - 1) or count == 1 < usual,
            "has a line that begins as a row does": numbered and any(map(a_row.match, fields[place].splitlines()[1:])),
            "has a quotation mark within a word": re.search(r'\w"\w', fields[place]),
            "has a quotation mark without a space": longer and re.search(r'\S"\w', fields[place]),
        }
        fault = next((fault for fault, found in faults.items() if found), None)
        check(not fault, f"{path}, line {line}: the sonnet of this row {fault}: is a quotation mark astray?")


def _filled(field):
    return [line for line in field.splitlines() if line.strip()]
