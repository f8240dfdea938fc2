"""The one table printer: aligned columns that can be pasted into a report."""


def format_table(rows, title=None, corner=""):
    """The text of a table, its last line ended.

    rows: {name: text} or {name: {column: text}}; the columns are those of the first row, and a row that lacks one shows
    "-". title: stands above, underlined. corner: what the names are.
    """
    head = f"{title}\n{'-' * len(title)}\n" if title else ""
    width = max(map(len, [*rows, corner]))
    first = next(iter(rows.values()))
    if not isinstance(first, dict):
        return head + "".join(f"{name:<{width}}  {value}\n" for name, value in rows.items())
    cells = {name: [row.get(column, "-") for column in first] for name, row in rows.items()}
    lines = {corner: list(first)} | cells
    widths = [max(map(len, column)) for column in zip(*lines.values(), strict=True)]
    return head + "".join(
        f"{name:<{width}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(row, widths, strict=True)) + "\n"
        for name, row in lines.items()
    )


def plus_minus(value):
    """(mean, deviation) as text."""
    return "{:.2f} +- {:.2f}".format(*value)
