"""The clients that scripts hold: tinker's public classes on the embedded engine."""
