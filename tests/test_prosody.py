"""Syllables and rhymes against counts by hand."""

import pytest

from decoding.prosody import measure_form, rhymes, rhyming_pairs, syllables


def test_syllables_and_rhymes():
    pronouncing = pytest.importorskip("pronouncing")
    assert syllables("Shall I compare thee to a summer's day?", pronouncing) == 10
    assert syllables("blindle zorped", pronouncing) == 4  # guessed: blin-dle zor-ped
    assert rhymes("day", "may", pronouncing) and not rhymes("day", "night", pronouncing)
    assert rhymes("day", "day", pronouncing) is False and rhymes("day", "zorped", pronouncing) is None
    assert rhyming_pairs() == [(0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 13)]


def test_measure_form_against_a_count_by_hand():
    pronouncing = pytest.importorskip("pronouncing")
    ends = ["day", "night", "way", "light", "tree", "go", "sea", "zorped", "hat", "cold", "cat", "warm", "end", "end"]
    text = "\n".join(f"one two three, {end}" for end in ends)  # 4 syllables each, but for zorped
    figures = measure_form([text], 3, pronouncing)
    assert figures["syllables a line"] == pytest.approx((10 * 4 + 5) / 11) and figures["10 syllables"] == 0
    assert figures["rhymes known"] == pytest.approx(5 / 6)  # go with zorped is unknown; the first pair was given
    assert figures["rhymes"] == pytest.approx(3 / 5)  # night-light, tree-sea, hat-cat; not cold-warm, not end-end
    assert measure_form([""], 3, pronouncing)["rhymes"] == 0
