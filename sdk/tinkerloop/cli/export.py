"""Write a checkpoint of the embedded engine as a PEFT adapter, or as a whole model (--merged)."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinkerloop.cli.run_checkpoint import checkpoint_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a run folder (its newest checkpoint) or a tinker:// path")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    parser.add_argument("--merged", action="store_true", help="a transformers model instead of an adapter")
    parser.add_argument("--root", type=Path, help="what tinker:// paths are under, if not the run's own")


def run(arguments: argparse.Namespace) -> int:
    from tinkerloop.local.runtime.checkpoint_export import export_checkpoint

    root, path = checkpoint_of(arguments.path, arguments.root)
    export_checkpoint(root, path, arguments.to, merged=arguments.merged)
    print(f"{path}: {'merged model' if arguments.merged else 'adapter'} written to {arguments.to}")
    return 0
