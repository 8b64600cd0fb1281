"""Export a checkpoint as a PEFT adapter, or one of the embedded engine as a merged model with --merged."""

from __future__ import annotations

import argparse

from tinkerloop.cli.run_checkpoint import checkpoint_of, naming_root, training_path
from tinkerloop.cli.text_options import non_empty, non_empty_path
from tinkerloop.errors import TinkerloopError
from tinkerloop.terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=non_empty, help="A run folder (its newest checkpoint is taken), or a tinker:// path."
    )
    parser.add_argument("--to", type=non_empty_path, required=True, help="The folder to which the files are written.")
    parser.add_argument("--merged", action="store_true", help="Write a whole transformers model instead of an adapter.")
    parser.add_argument(
        "--service",
        type=non_empty,
        help='The service that has the checkpoint, from which its files are downloaded: "tinker" for the hosted '
        "service, or the URL of a server. The default is the embedded engine's folder on this machine.",
    )
    parser.add_argument(
        "--root",
        type=non_empty_path,
        help="The folder that tinker:// paths are relative to. The default is the run's own folder, or ~/.tinkerloop.",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.service is not None:
        return _download(arguments)
    from tinkerloop.local.runtime.checkpoint_export import export_checkpoint

    root, path = checkpoint_of(arguments.path, arguments.root)
    with naming_root(root):
        export_checkpoint(root, path, arguments.to, merged=arguments.merged)
    print(f"{path}: {'merged model' if arguments.merged else 'adapter'} written to {printable(arguments.to)}")
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from tinkerloop.cli.checkpoint_download import download_checkpoint
    from tinkerloop.connection import connect, session

    if arguments.merged or arguments.root:
        raise TinkerloopError(
            "--merged and --root are for checkpoints of the embedded engine on this machine; omit them with --service, "
            "and merge the downloaded adapter with PEFT"
        )
    if arguments.service == "local":
        raise TinkerloopError("--service local is the default; omit it")
    path = training_path(arguments.path)
    with session(connect(arguments.service)) as service:
        download_checkpoint(service, path, arguments.to)
    print(f"{path}: downloaded to {printable(arguments.to)}")
    return 0
