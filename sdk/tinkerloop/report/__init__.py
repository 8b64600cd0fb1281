"""Pages and tables of runs: `write_report` writes a run's page, `run_table` compares runs."""

from tinkerloop.report.run_page import write_report
from tinkerloop.report.run_reading import RunData, Series, is_run, read_run

__all__ = ["RunData", "Series", "is_run", "read_run", "write_report"]
