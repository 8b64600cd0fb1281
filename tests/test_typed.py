"""The annotations are enough for a user who runs pyright in strict mode on their own script."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parent / "typed" / "pyrightconfig.json"


@pytest.mark.slow
def test_users_scripts_pass_pyright_in_strict_mode():
    """Strict mode refuses unknown types, so nothing that these scripts touch is left without a type."""
    command = [sys.executable, "-m", "pyright", "--project", str(CONFIG), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
