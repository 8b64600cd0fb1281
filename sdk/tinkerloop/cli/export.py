"""Export a checkpoint of the embedded engine as a PEFT adapter, or as a merged model with --merged."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinkerloop.cli.run_checkpoint import checkpoint_of, naming_root
from tinkerloop.terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="A run folder (its newest checkpoint is exported), or a tinker:// path.")
    parser.add_argument("--to", type=Path, required=True, help="The folder to which the files are written.")
    parser.add_argument("--merged", action="store_true", help="Write a whole transformers model instead of an adapter.")
    parser.add_argument(
        "--root",
        type=Path,
        help="The folder that tinker:// paths are relative to. The default is the run's own folder, or ~/.tinkerloop.",
    )


def run(arguments: argparse.Namespace) -> int:
    from tinkerloop.local.runtime.checkpoint_export import export_checkpoint

    root, path = checkpoint_of(arguments.path, arguments.root)
    with naming_root(root):
        export_checkpoint(root, path, arguments.to, merged=arguments.merged)
    print(f"{path}: {'merged model' if arguments.merged else 'adapter'} written to {printable(arguments.to)}")
    return 0
