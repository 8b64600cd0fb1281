"""The `tinkerloop` command: one file a command, `main.py` finds it."""
