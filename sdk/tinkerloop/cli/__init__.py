"""The `tinkerloop` command line, with one module for each command."""
