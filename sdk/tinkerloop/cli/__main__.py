"""Run the command line as `python -m tinkerloop.cli`."""

import sys

from tinkerloop.cli.main import main

sys.exit(main())
