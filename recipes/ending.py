"""The end of a run with a score: its summary, its page and its last line. This is not a recipe."""

from __future__ import annotations

from tinkerloop.loop import Run, Summary
from tinkerloop.report import write_report


def end_with_score(run: Run, summary: Summary, metric: str, meaning: str) -> float:
    """Write the summary and the page of a run, print the score of its newest weights, and return the score.

    The last line also tells if the run was stopped before its end, for example by SIGTERM: the score is then not final,
    and the same command goes on.

    Args:
        run: the run, which is still open.
        summary: how the run ended.
        metric: the name of the score among the metrics of the summary.
        meaning: the fraction of what the score is.
    """
    run.finish(summary)
    print(f"the page of the run is {write_report(run.folder)}")
    score = summary.metrics[metric]
    stopped = f" after {summary.step} steps; the run is not complete ({summary.reason}): start it again to go on"
    print(f"{meaning}: {score:.0%}{stopped if summary.stopped_early else ''}")
    return score
