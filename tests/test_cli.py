"""The command line."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import warnings
from pathlib import Path

import pytest

import tinkerloop
from tinkerloop.cli.chat import write
from tinkerloop.cli.main import COMMANDS, main
from tinkerloop.renderers.parsing.parsed import StreamingTextDelta, StreamingThinkingDelta

ROW = {"messages": [{"role": "user", "content": "naïve <b>?"}, {"role": "assistant", "content": "yes", "weight": 0.5}]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    return path


def test_inspect_prints_tokens_counts_and_weights(file, capsys) -> None:
    assert main(["inspect", str(file), "--renderer", "qwen3_instruct"]) == 0
    out = capsys.readouterr().out
    assert f"{file}:2" in out
    assert "naïve <b>?" in out
    assert "4 trained with weights 0.5" in out


def test_a_warning_of_a_command_is_one_line_without_a_place_in_the_code(monkeypatch, capsys) -> None:
    def warn(arguments: argparse.Namespace) -> int:
        warnings.warn("the adapter must not be merged", stacklevel=1)
        return 0

    monkeypatch.setattr(importlib.import_module(COMMANDS["runs"]), "run", warn)
    shown = warnings.showwarning
    assert main(["runs", "folder"]) == 0
    assert capsys.readouterr().err == "tinkerloop runs: warning: the adapter must not be merged\n"
    assert warnings.showwarning is shown


@pytest.mark.parametrize(
    ("command", "option"), [("inspect", "--html"), ("report", "--out"), ("runs", "--html")], ids=str
)
def test_a_file_in_a_folder_that_is_missing_is_refused_with_the_folder(command, option, tmp_path, capsys) -> None:
    file = tmp_path / "none" / "page.html"
    assert main([command, str(tmp_path), option, str(file)]) == 2
    problem = f"there is no folder {file.parent}; create it, or pass another file to {option}"
    assert capsys.readouterr().err == f"tinkerloop {command}: {option} {file}: {problem}\n"
    assert main([command, str(tmp_path), option, str(tmp_path)]) == 2
    assert "this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["report", "run", "--watch", "--out", "page.html"], "--watch serves the page and writes no file: omit --out"),
        (["report", "run", "--port", "0"], "--port is for --watch"),
        (["runs", "run", "--reverse"], "--reverse turns the order of --sort around: pass --sort COLUMN too"),
        (["estimate", "rows", "--on-long", "skip"], "--on-long is for conversations longer than --max-length"),
        (["serve", "--model", "tiny=."], "'tiny' is the name of a built-in model; give the folder another name"),
        (["run", "--model", "tiny=folder", __file__], "such as my/tiny=folder, which the program then uses"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_without_effect_is_refused_with_what_to_do(command, problem, capsys) -> None:
    assert main(command) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize(
    "command",
    ["chat x --system", "chat x --renderer", "chat x --tokenizer", "chat x --service", "serve --token", "serve --host",
     "runs --sort", "export x --to y --service", "inspect x --renderer", "inspect x --model", "estimate x --renderer",
     "estimate x --model"],
)  # fmt: skip
def test_an_empty_text_is_refused_and_does_not_count_as_no_option(command, text, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), text])
    assert f"expected a text that is not empty, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize(
    "command",
    ["serve --root", "run --root", "export x --to y --root", "export x --to", "chat x --root", "report",
     "report x --out", "runs", "runs x --html", "rollouts", "inspect", "inspect x --html",
     "estimate", "estimate x --test-file"],
)  # fmt: skip
def test_an_empty_path_is_refused_and_does_not_count_as_the_current_folder(command, text, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), text])
    assert f"expected a path that is not empty, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat", "export --to y"])
def test_an_empty_name_of_a_run_is_refused(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), ""])
    assert "expected a text that is not empty, got ''" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_keeps_its_examples_and_wraps_its_text(command, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.partition("\n\n")[2].splitlines()  # without the usage
    lines = lines[: min(lines.index(head) for head in ("positional arguments:", "options:") if head in lines)]
    documented = (importlib.import_module(COMMANDS[command]).__doc__ or "").splitlines()
    examples = [line for line in documented if line.startswith(" ")]
    assert [line for line in lines if line in examples] == examples
    assert all(len(line) <= 70 for line in lines if line not in examples)
    if command in ("estimate", "run", "runs"):
        assert all(line.startswith(f"    tinkerloop {command} ") for line in examples)
        assert examples


def test_inspect_shows_what_truncation_cuts_off(file, capsys) -> None:
    assert main(["inspect", str(file), "--max-length", "30", "--limit", "1"]) == 0
    assert "cut off, 4 of them trained" in capsys.readouterr().out


@pytest.mark.parametrize("colour_off", [{}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}])
def test_inspect_marks_what_is_trained_and_cut_where_there_is_no_colour(file, capsys, monkeypatch, colour_off) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in colour_off.items():
        monkeypatch.setenv(name, value)
    command = ["inspect", str(file), "--renderer", "qwen3_instruct", "--limit", "1"]
    assert main(command) == 0
    assert "⟨|im_start|⟩assistant⏎\n⟦" in (whole := capsys.readouterr().out)
    assert "⟨|im_end|⟩⟧" in whole
    assert whole.count("⟦") == whole.count("⟧") == 1
    assert "✂" not in whole
    assert main([*command, "--max-length", "3"]) == 0
    kept, _, cut = capsys.readouterr().out.partition("✂")
    assert "⟦" not in kept
    assert "⟨|im_end|⟩⟧" in cut


def test_inspect_marks_nothing_in_the_text_where_there_is_colour(file, capsys, monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["inspect", str(file), "--renderer", "qwen3_instruct", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert "⟦" not in out


@pytest.mark.parametrize("as_page", [False, True])
def test_inspect_shows_a_control_token_unlike_text_that_spells_it(tmp_path, capsys, as_page) -> None:
    file, page = tmp_path / "chats.jsonl", tmp_path / "page.html"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "<|im_end|>"}, ROW["messages"][1]]}) + "\n")
    command = ["inspect", str(file), "--renderer", "qwen3_instruct", *(["--html", str(page)] if as_page else [])]
    assert main(command) == 0
    shown = re.sub(r"<[^>]*>", "", page.read_text()) if as_page else capsys.readouterr().out
    typed = "&lt;|im_end|&gt;" if as_page else "<|im_end|>"
    assert f"{typed}⟨|im_end|⟩" in shown


def test_inspect_ends_with_totals(file, capsys) -> None:
    assert main(["inspect", str(file), "--renderer", "qwen3_instruct"]) == 0
    first, *_, last = capsys.readouterr().out.rstrip().splitlines()
    (of_one,) = re.findall(r"(\d+) tokens", first)
    assert last.startswith(f"all 2 that are shown: {2 * int(of_one)} tokens, ")
    assert last.endswith("; tokenizer: tiny (bytes); pass --model for another one")


def test_inspect_writes_a_page_that_needs_nothing_else(file, tmp_path) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(file), "--html", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "&lt;" in text
    assert "<b>?" not in text
    assert 'class="trained"' in text
    assert "src=" not in text
    assert "href=" not in text


@pytest.mark.parametrize("colour", ["NO_COLOR", "FORCE_COLOR"])
def test_inspect_shows_control_characters_and_sends_none_to_the_terminal(tmp_path, capsys, monkeypatch, colour) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(colour, "1")
    monkeypatch.setenv("TERM", "xterm")
    path, odd = tmp_path / "odd.jsonl", "a\x1b[2J\x1b]0;t\x07\rb\x00\tc\x7f\x9b\u202ed\u2028"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": odd}, ROW["messages"][1]]}))
    assert main(["inspect", str(path), "--renderer", "qwen3_instruct"]) == 0
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert re.sub(" +", " ", out).count("a␛[2J␛]0;t␇␍b␀␉ c␡[U+009B][U+202E]d[U+2028]") == 1
    page = tmp_path / "page.html"
    assert main(["inspect", str(path), "--html", str(page)]) == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page.read_text())


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (["--max-length", "1"], "at least 2, got '1'"),
        (["--limit", "-1"], "at least 0, got '-1'"),
        (["--limit", "few"], "at least 0, got 'few'"),
    ],
)
def test_inspect_refuses_numbers_that_show_nothing(file, capsys, option, problem) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(file), *option])
    assert problem in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_page_that_cannot_be_written_is_named(file, capsys) -> None:
    assert main(["inspect", str(file), "--html", "/dev/full"]) == 2
    assert "cannot write the page /dev/full: No space left" in capsys.readouterr().err


def test_a_file_that_cannot_be_rendered_is_named_with_its_line(tmp_path, capsys) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROW) + "\n{oops\n")
    assert main(["inspect", str(path)]) == 2
    assert f"{path}:2" in capsys.readouterr().err


HOSTILE = "a\x1b]52;c;eA==\x07\x1b[2J\x9b\r\u202eb"
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_a_file_name_sends_nothing_to_the_terminal(tmp_path, capsys) -> None:
    assert main(["inspect", str(tmp_path / f"{HOSTILE}.jsonl")]) == 2
    assert main(["export", f"{tmp_path}/{HOSTILE}", "--to", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("a␛]52;c;eA==␇␛[2J") == 2
    assert not UNSAFE.search(captured.err + captured.out)


@pytest.mark.parametrize("delta", [StreamingTextDelta, StreamingThinkingDelta])
def test_a_reply_sends_nothing_to_the_terminal(delta) -> None:
    out = io.StringIO()
    write(delta(HOSTILE + "\n\tc"), out)
    assert out.getvalue() == "a␛]52;c;eA==␇␛[2J[U+009B]␍[U+202E]b\n\tc"


@pytest.fixture
def file_with_bad_rows(tmp_path):
    path = tmp_path / "bad.jsonl"
    rows = ["{oops", json.dumps({"messages": [{"role": "wizard", "content": "x"}]}), json.dumps(ROW)]
    path.write_text("".join(row + "\n" for row in rows))
    return path


def test_bad_rows_are_marked_and_the_others_are_shown(file_with_bad_rows, capsys) -> None:
    assert main(["inspect", str(file_with_bad_rows)]) == 2
    captured = capsys.readouterr()
    assert [line.split("bad.jsonl")[1][:3] for line in captured.out.splitlines() if "✗" in line] == [":1:", ":2:"]
    assert f"{file_with_bad_rows}:3  " in captured.out
    assert "2 of 3 rows cannot be used" in captured.err


def test_a_page_shows_bad_rows_too(file_with_bad_rows, tmp_path) -> None:
    assert main(["inspect", str(file_with_bad_rows), "--html", str(tmp_path / "page.html")]) == 2
    page = (tmp_path / "page.html").read_text()
    assert page.count("✗") == 2
    assert page.count("<pre") == 1
    assert 'class="trained"' in page


def test_bad_rows_count_towards_the_limit(file_with_bad_rows, capsys) -> None:
    assert main(["inspect", str(file_with_bad_rows), "--limit", "2"]) == 2
    assert "bad.jsonl:3" not in capsys.readouterr().out


def test_a_file_without_rows_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["inspect", str(tmp_path / "empty.jsonl")]) == 2
    assert "the file has no rows" in capsys.readouterr().err


def test_help_names_the_commands_and_an_unknown_one_is_refused(capsys) -> None:
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    assert "inspect" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["fly"])
    assert end.value.code == 2


def test_the_version_is_the_packages(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tinkerloop {tinkerloop.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_in_a_full_sentence(command) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command]).add_arguments(parser)
    for action in parser._actions[1:]:  # the first is argparse's own --help
        assert action.help, action.dest
        assert action.help[0].isupper()
        assert action.help.endswith(".")
