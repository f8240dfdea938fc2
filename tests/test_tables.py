"""Tables of the reports against tables typed by hand."""

from cli.tables import format_table, plus_minus


def test_a_column_of_values_under_a_title():
    table = format_table({"dev loss": "3.25", "n": "7"}, "Some figures")
    assert table == "Some figures\n------------\ndev loss  3.25\nn         7\n"


def test_columns_have_the_width_of_their_widest_cell_and_stand_right():
    rows = {"a": {"x": "1", "longer": "2"}, "bcd": {"x": "12345", "longer": "6"}}
    assert format_table(rows) == "         x  longer\na        1       2\nbcd  12345       6\n"


def test_the_corner_says_what_the_names_are_and_may_be_the_widest():
    assert format_table({"a": {"x": "1"}}, corner="model") == "model  x\na      1\n"


def test_the_first_row_sets_the_columns_and_a_row_without_one_shows_a_dash():
    rows = {"a": {"x": "1", "y": "2"}, "b": {"y": "3", "z": "not shown"}}
    assert format_table(rows) == "   x  y\na  1  2\nb  -  3\n"


def test_mean_and_deviation_have_two_digits():
    assert plus_minus((1.005, 0)) == "1.00 +- 0.00" and plus_minus((12.346, 3.5)) == "12.35 +- 3.50"
