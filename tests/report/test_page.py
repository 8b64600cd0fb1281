import json
import re
import shutil
import subprocess

import pytest

from tests.report.conftest import REPLIES
from tinkerloop.errors import CheckpointError
from tinkerloop.loop.jsonl import append_line
from tinkerloop.report import write_report
from tinkerloop.report.shown_rollouts import shown_samples


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_page_has_the_curves_of_all_metrics(run_folder):
    charts = data_of(write_report(run_folder).read_text())["charts"]
    curves = {curve["name"]: curve for chart in charts for curve in chart["curves"]}
    assert curves["loss"]["steps"] == list(range(8))
    assert curves["test/exact_match"]["steps"] == [0, 2, 4, 6, 8]
    assert {"learning_rate", "tokens/total", "tokens/trained", "time/total", "time/server"} <= curves.keys()
    assert charts[0]["title"] == "Loss"


def test_a_resume_is_marked_at_its_step(run_folder):
    text = write_report(run_folder).read_text()
    assert data_of(text)["resumes"] == [4]
    assert "steps: 4 → 8" in text


def test_a_page_tells_totals_checkpoints_data_and_the_command(run_folder):
    text = write_report(run_folder).read_text()
    assert "<b>48</b><span>tokens</span>" in text  # 8 steps of one datum with 6 positions, 3 of them with a weight
    assert "<b>24</b><span>trained tokens</span>" in text
    assert "Checkpoints that are kept (4)" in text
    assert "20 rows, all used" in text
    assert "<td>command</td>" in text


def test_a_page_says_how_to_go_on_only_if_there_is_more_to_train(run_folder):
    complete = write_report(run_folder).read_text()
    assert "Complete: to train further, raise steps / num_epochs." in complete
    assert "To go on" not in complete
    summary = json.loads((run_folder / "summary.json").read_text())
    (run_folder / "summary.json").write_text(json.dumps(summary | {"reason": "received <SIGTERM>"}))
    text = write_report(run_folder).read_text()
    assert "Ended: received &lt;SIGTERM&gt;. To go on: <code>" in text
    assert "Complete" not in text


def test_texts_of_models_are_text_in_the_page(run_folder):
    text = write_report(run_folder).read_text()
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>alert" not in text
    assert "<b>bold</b>" not in text
    assert "\x1b" not in text


def test_names_of_metrics_cannot_end_the_script_that_holds_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "</script><script>alert(1)": 1.0}) + "\n")
    text = write_report(tmp_path).read_text()
    assert "<script>alert" not in text
    assert data_of(text)["charts"][0]["curves"][0]["name"] == "</script><script>alert(1)"


def test_the_page_of_ten_thousand_steps_is_small_and_keeps_peaks(tmp_path):
    names = ["loss", "learning_rate", "tokens", "unclipped_grad_l2:mean", "time/total", "reward/mean"]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(10_000):
            row = {"step": step, **dict.fromkeys(names, step * 0.123456789)}
            if step == 4321:
                row["loss"] = 1e6
            if step == 5000:
                row["reward/mean"] = "NaN"
            file.write(json.dumps(row) + "\n")
    page = write_report(tmp_path)
    curves = {curve["name"]: curve for chart in data_of(page.read_text())["charts"] for curve in chart["curves"]}
    assert page.stat().st_size < 1_500_000
    assert curves["loss"]["values"][curves["loss"]["steps"].index(4321)] == 1e6
    assert curves["reward/mean"]["values"][curves["reward/mean"]["steps"].index(5000)] is None
    assert curves["reward/mean"]["non_finite"] == 1


def test_rollouts_are_shown_from_the_best_to_the_worst_of_a_batch(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    with (tmp_path / "rollouts.jsonl").open("w") as file:
        for batch in range(9):
            trajectories = [
                {
                    "segments": [],
                    "turns": [{"reward": reward, "termination": "stop_sequence", "metrics": {}}],
                    "messages": [{"role": "user", "content": f"question {batch}"}],
                    "end": "done",
                    "boundary": batch,
                    "seed": 0,
                }
                for reward in (0.0, 1.0, 0.5)
            ]
            file.write(json.dumps({"batch": batch, "slot": 0, "trajectories": trajectories, "failures": []}) + "\n")
    text = write_report(tmp_path).read_text()
    shown = re.findall(r"<summary>batch (\d) · (\w+) · reward (\S+) · ended: done", text)
    assert [batch for batch, kind, _ in shown if kind == "best"] == ["0", "2", "5", "8"]
    assert {kind: reward for _, kind, reward in shown} == {"best": "1", "worst": "0", "random": "0.5"}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_browser_draws_every_chart_without_an_error(run_folder, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    page = write_report(run_folder)
    charts = len(data_of(page.read_text())["charts"])
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr",
         "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert f'data-charts="{charts}"' in done.stdout
    assert done.stdout.count("<canvas") == charts
    assert "CONSOLE" not in done.stderr
    assert REPLIES[2][0].replace("&", "&amp;") in done.stdout


def test_samples_without_a_score_are_not_called_best_or_worst():
    samples = [{"step": 3, "messages": [], "reply": f"reply {i}"} for i in range(5)]
    assert [(one["kind"], one["reward"]) for one in shown_samples(samples)] == [("sample", None)] * 3


def test_samples_keep_texts_that_are_words_for_numbers(tmp_path):
    sample = {"step": 0, "messages": [{"role": "user", "content": "NaN"}], "reply": "Infinity", "reference": "NaN"}
    append_line(tmp_path / "metrics.jsonl", {"step": 0, "loss": 1.0})
    append_line(tmp_path / "samples.jsonl", {**sample, "score": float("-inf")})
    page = write_report(tmp_path).read_text()
    assert re.findall(r"</b><pre>(.*?)</pre>", page) == ["NaN", "Infinity", "NaN"]
    assert "score -inf" in page


def test_an_option_that_is_no_number_is_not_another_option_at_each_start(tmp_path):
    append_line(tmp_path / "metrics.jsonl", {"step": 9, "loss": 1.0})
    for step in (0, 5):
        append_line(tmp_path / "starts.jsonl", {"step": step, "config": {"limit": float("nan")}})
    assert "limit: " not in write_report(tmp_path).read_text()


def test_options_are_compared_with_those_of_the_last_start_that_trained(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(30)))
    starts = [(0, 1), (20, 2), (20, 1), (20, 3)]  # (step, rate); the second and the third start failed
    rows = ({"step": step, "started": f"start {i}", "config": {"rate": rate}} for i, (step, rate) in enumerate(starts))
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = write_report(tmp_path).read_text().partition("other than at the last start that trained")[2]
    cells = re.findall(r"<td>start \d</td><td class=number>\d+</td><td></td><td>(.*?)</td>", table)
    assert cells == ["", "rate: 1 → 2", "", "rate: 1 → 3"]
