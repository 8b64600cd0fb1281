"""Module that Python imports when a program of `tinkerloop run` starts, because its folder is on PYTHONPATH.

It lets transformers find the models of `--model NAME=FOLDER`, then imports the `sitecustomize` that it hides, if any.
"""

import importlib
import os
import sys
from contextlib import suppress

with suppress(ImportError):  # another Python, in which tinkerloop is not installed
    from tinkerloop.cli.hub_names import redirect_hub_names

    redirect_hub_names()

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
ours = sys.modules.pop("sitecustomize", None)
with suppress(ImportError):
    importlib.import_module("sitecustomize")
if ours is not None:
    sys.modules.setdefault("sitecustomize", ours)
