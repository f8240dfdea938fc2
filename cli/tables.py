"""The one table printer: aligned columns that can be pasted into a report; and the same as Markdown, CSV and HTML."""

import csv
import html
import io
import unicodedata


def format_table(rows, title=None, corner=""):
    """The text of a table, its last line ended.

    rows: {name: text} or {name: {column: text}}; the columns are those of the first row, and a row that lacks one shows
    "-". title: stands above, underlined. corner: what the names are.
    """
    head = f"{title}\n{'-' * columns_of(title)}\n" if title else ""
    width = max(map(columns_of, [*rows, corner]))
    first = next(iter(rows.values()))
    if not isinstance(first, dict):
        return head + "".join(f"{_left(name, width)}  {value}\n" for name, value in rows.items())
    cells = {name: [row.get(column, "-") for column in first] for name, row in rows.items()}
    lines = {corner: list(first)} | cells
    widths = [max(map(columns_of, column)) for column in zip(*lines.values(), strict=True)]
    return head + "".join(
        _left(name, width) + "".join(f"  {_right(*pair)}" for pair in zip(row, widths, strict=True)) + "\n"
        for name, row in lines.items()
    )


def columns_of(text):
    """How many columns of a terminal a text takes: letters such as Korean's take two each."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in unicodedata.normalize("NFC", text))


def _left(text, width):
    return text + " " * (width - columns_of(text))


def _right(text, width):
    return " " * (width - columns_of(text)) + text


def plus_minus(value):
    """(mean, deviation) as text."""
    return "{:.2f} +- {:.2f}".format(*value)


def to_markdown(rows, note=""):
    """rows: {name: {column: text}} with the same columns in each row. note: a line below."""
    columns = list(next(iter(rows.values())))
    lines = [["", *columns], ["---", *["---:"] * len(columns)], *([name, *row.values()] for name, row in rows.items())]
    return markdown_lines(lines) + (f"\n{note}\n" if note else "")


def markdown_lines(lines):
    """Lines of cells as those of a Markdown table; the second one is the rule."""
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def to_csv(rows):
    """The same rows; the first column is the name."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", *next(iter(rows.values()))])
    writer.writerows([name, *row.values()] for name, row in rows.items())
    return file.getvalue()


def to_html(rows, title, note=""):
    """The same rows as a page that needs no other file, light or dark as its reader has it."""

    def line(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    body = "".join(line("td", [name, *row.values()]) for name, row in rows.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: CanvasText; background: Canvas }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid GrayText }}
th:first-child, td:first-child {{ text-align: left }}
table {{ border-collapse: collapse }}
</style></head><body>
<h1>{html.escape(title)}</h1>
<table>
{line("th", ["", *next(iter(rows.values()))])}{body}</table>
<p>{html.escape(note)}</p>
</body></html>
"""
