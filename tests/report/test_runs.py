import json
import re
import urllib.error
import urllib.request
from threading import Thread

import pytest

from tests.report.conftest import train
from tinkerloop.cli.main import main
from tinkerloop.loop import Run, Summary
from tinkerloop.report.run_reading import newest_values, read_run
from tinkerloop.report.watching import watch
from tinkerloop.testing import OrderedService


@pytest.fixture
def runs(tmp_path):
    for name, steps in (("fast", 4), ("slow/inner", 2)):
        train(tmp_path / "runs" / name, steps, OrderedService(vocab_size=20), {"batch_size": 8})
    return tmp_path / "runs"


def test_runs_are_listed_with_their_differences(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    head, _, *rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert head[:3] == ["name", "state", "step"]
    assert head[-1] == "steps"  # the only option in which they differ
    assert [row[0] for row in rows[:2]] == ["fast", "slow/inner"]


def test_runs_are_sorted_and_filtered(runs, capsys):
    main(["runs", str(runs), "--sort", "step", "--where", "state=steps reached"])
    out = capsys.readouterr().out
    assert out.index("slow/inner") < out.index("fast")
    main(["runs", str(runs), "--where", "steps=4"])
    assert f"\n1 run in {runs}\n" in capsys.readouterr().out
    main(["runs", str(runs), "--where", "state=steps reached"])
    assert f"\n2 runs in {runs}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("condition", "count"),
    [("rate=2e-4", 1), ("rate=0.0002", 1), ("rate=.001", 1), ("rate=1e-4", 0), ("rate=fast", 0), ("flag=true", 1),
     ("flag=1", 0), ("loss=1.23456789", 2), ("loss=1.2346", 2), ("loss=1.234", 0)],
)  # fmt: skip
def test_a_value_is_found_in_each_spelling_of_its_number_and_as_the_table_shows_it(tmp_path, capsys, condition, count):
    for rate, flag in ((0.0002, True), (0.001, False)):
        folder = tmp_path / f"with {rate}"
        write_run(folder, {"rate": rate, "flag": flag})
        (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.23456789}\n')
    assert main(["runs", str(tmp_path), "--where", condition]) == 0
    assert f"\n{count} run{'' if count == 1 else 's'} in " in capsys.readouterr().out


@pytest.mark.parametrize(("options", "order"), [([], "dcaeb"), (["--reverse"], "eacdb")])
def test_a_run_whose_value_is_nan_comes_last_in_both_directions(tmp_path, capsys, options, order):
    for name, loss in zip("abcde", (3.0, "NaN", 1.0, "-Infinity", "Infinity"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": loss}) + "\n")
    assert main(["runs", str(tmp_path), "--sort", "loss", *options]) == 0
    assert "".join(re.findall(r"^\s+([a-e])\s", capsys.readouterr().out, re.MULTILINE)) == order


def test_a_column_that_is_not_there_gets_the_nearest_name(runs, capsys):
    assert main(["runs", str(runs), "--sort", "lss"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("got 'lss'; did you mean 'loss'?")
    assert main(["runs", str(runs), "--where", "unlike anything=1"]) == 2
    assert "the columns are name, state, step, loss, tokens, seconds, " in capsys.readouterr().err


def write_run(folder, config):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.25, "test/nll": 2.5, "tokens/total": 7}\n')
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def unlike_runs(tmp_path):
    """Two runs with fifty dotted options, and one with an option of its own."""
    for name, batch_size in (("first", 8), ("second", 16)):
        common = {"batch_size": batch_size, "name": name} | {f"an_option_of_the_data_{i}": i for i in range(50)}
        train_options = {"seed": {"first": 0, "second": 1}[name]}
        write_run(
            tmp_path / "runs" / name,
            {
                "log_path": f"runs/{name}",
                "run": f"runs/{name}",
                "data": {"common": common, "seed": batch_size},
                "train": train_options,
            },
        )
    write_run(tmp_path / "runs" / "[b]hand", {"rate": 0.1})
    return tmp_path / "runs"


def test_only_options_that_two_runs_have_and_in_which_they_differ_are_columns(unlike_runs, capsys):
    assert main(["runs", str(unlike_runs)]) == 0
    head = capsys.readouterr().out.split("\n")[1].split()
    fixed = ["name", "state", "step", "loss", "tokens", "seconds", "test/nll"]
    assert head == [*fixed, "batch_size", "data.common.name", "data.seed", "train.seed"]


@pytest.mark.parametrize(("width", "left"), [(80, 3), (110, 1), (200, 0)])
def test_columns_that_do_not_fit_into_the_terminal_are_counted(unlike_runs, capsys, monkeypatch, width, left):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    assert main(["runs", str(unlike_runs)]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for text in ("name", "state", "step", "loss", "tokens", "seconds", "test/nll", "[b]hand", "1.25", "2.5"):
        assert text in out
    assert ("train.seed" in out) == (left == 0)
    assert (f"columns that do not fit into the terminal: {left}; see them with --html" in out) == (left > 0)
    assert all(len(line) <= width for line in out.split("\n") if line.startswith(" "))


def test_the_curves_of_runs_are_laid_over_each_other(runs, tmp_path):
    main(["runs", str(runs), "--html", str(tmp_path / "runs.html")])
    text = (tmp_path / "runs.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    loss = next(chart for chart in data["charts"] if chart["title"] == "loss")
    assert "<th>steps</th>" in text
    assert "<td>slow/inner</td>" in text
    assert [(curve["name"], len(curve["steps"])) for curve in loss["curves"]] == [("fast", 4), ("slow/inner", 2)]


def test_metrics_of_the_cookbook_are_read(tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    rows = [{"step": step, "train_mean_nll": 1.5 - step, "learning_rate": 1e-4, "progress": 0.5} for step in range(2)]
    (tmp_path / "theirs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "theirs" / "config.json").write_text('{"model_name": "m"}')
    assert main(["report", str(tmp_path / "theirs")]) == 0
    assert main(["runs", str(tmp_path)]) == 0
    assert "theirs" in capsys.readouterr().out


def test_a_watched_page_is_served_to_this_machine_only(runs):
    with watch(runs / "fast") as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = urllib.request.urlopen(address).read().decode()
        version = urllib.request.urlopen(address + "version").read().decode()
        assert f'"watched":"{version}"' in page
        elsewhere = urllib.request.Request(address, headers={"Host": "example.org"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(elsewhere)
        server.shutdown()


STEPS = "".join(f'{{"step": {step}, "loss": {step / 7}, "é": 1}}\n' for step in range(4000))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("few rows", '{"step": 3, "loss": 2.0}\n{"step": 5, "test/nll": 1.0}\n{"step": 6, "lo'),
        ("an evaluation only at the start", '{"step": 0, "test/nll": 1.5}\n' + STEPS),
        ("a value that is not finite", '{"step": 0, "loss": "NaN"}\n' + STEPS + '{"step": 9999, "loss": "Infinity"}\n'),
        ("rows without a step", STEPS.replace('"step": ', '"number": ')),
        ("the same names in all rows", STEPS),
        ("other spaces", STEPS.replace('"é', '  "é').replace('": ', '":')),
    ],
)
def test_the_newest_values_are_the_last_of_the_curves(tmp_path, name, text):
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    run = read_run(tmp_path)
    assert run.newest == {name: (one.steps[-1], one.values[-1]) for name, one in run.series.items()}


def test_a_long_file_of_equal_rows_is_not_parsed_for_the_table(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(STEPS + '{"step": 4000, "loss": 1}\n')
    assert newest_values(tmp_path / "metrics.jsonl") == {"loss": (4000, 1), "é": (3999, 1)}
    assert newest_values(tmp_path / "other.jsonl") == {}


def test_a_run_without_times_of_its_steps_has_the_seconds_from_start_to_end(runs):
    timings = runs / "fast" / "timings.jsonl"
    timings.unlink()
    seconds = read_run(runs / "fast").seconds
    assert seconds == json.loads((runs / "fast" / "summary.json").read_text())["seconds"] > 0
    with Run(runs / "fast") as run:
        run.finish(Summary(4, "steps reached", {}))
    assert (read_run(runs / "fast").seconds or 0) > seconds, "the seconds of earlier starts are added"
    timings.write_text('{"step": 0, "total": 1.5e-1}\n{"step": 1, "total": 2}\n{"ste')
    assert read_run(runs / "fast").seconds == 2.15
