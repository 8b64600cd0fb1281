"""Write the page of a run: curves, samples, checkpoints and what was run, in one HTML file.

With `--watch`, the page is served to this machine only, and renewed while the run goes on.
"""

from __future__ import annotations

import argparse
import sys

from tinkerloop.cli.output_files import check_output
from tinkerloop.cli.serve import port
from tinkerloop.cli.text_options import non_empty_path
from tinkerloop.errors import TinkerloopError
from tinkerloop.report import read_run, write_report
from tinkerloop.report.run_page import run_page
from tinkerloop.report.watching import watch
from tinkerloop.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=non_empty_path, help="Run folder.")
    parser.add_argument(
        "--out", type=non_empty_path, help="File to write, without --watch. Default: report.html in the run folder."
    )
    parser.add_argument("--watch", action="store_true", help="Serve the page on 127.0.0.1 until you press Ctrl-C.")
    parser.add_argument("--port", type=port, help="Port for --watch. Default: any free port.")


def run(arguments: argparse.Namespace) -> int:
    check_output("--out", arguments.out)
    if arguments.watch and arguments.out is not None:
        raise TinkerloopError("--watch serves the page and writes no file: omit --out, or --watch to write the file")
    if not arguments.watch and arguments.port is not None:
        raise TinkerloopError("--port is for --watch, which serves the page: pass both, or omit --port")
    if not arguments.watch:
        print(one_line(write_report(arguments.run, arguments.out)))
        return 0
    run_page(read_run(arguments.run))  # an error now, and not in the browser
    with watch(arguments.run, arguments.port or 0) as server:
        print(f"http://127.0.0.1:{server.server_port}/ shows the run; press Ctrl-C to end", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
