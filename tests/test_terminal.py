"""Text that is safe to print."""

import doctest

import tinkerloop.terminal
from tinkerloop.terminal import one_line, printable


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(tinkerloop.terminal).failed == 0


def test_ordinary_text_of_any_script_stays_as_it_is():
    text = "naïve\t日本語 🏳️‍🌈 שלום\n[1m"
    assert printable(text) == text


def test_what_cannot_be_encoded_or_reorders_the_text_is_shown_by_its_number():
    assert printable("\udc80\u202e\u2028") == "[U+DC80][U+202E][U+2028]"


def test_a_name_stays_on_one_line():
    assert one_line("a\n\tb\r") == "a⏎␉b␍"
