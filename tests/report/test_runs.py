import json
import urllib.error
import urllib.request
from threading import Thread

import pytest

from tests.report.conftest import train
from tinkerloop.cli.main import main
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
    assert "1 runs" in capsys.readouterr().out
    assert main(["runs", str(runs), "--sort", "stepp"]) == 2
    assert "expects one of the columns" in capsys.readouterr().err


def test_the_curves_of_runs_are_laid_over_each_other(runs, tmp_path):
    main(["runs", str(runs), "--html", str(tmp_path / "runs.html")])
    text = (tmp_path / "runs.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    loss = next(chart for chart in data["charts"] if chart["title"] == "loss")
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
