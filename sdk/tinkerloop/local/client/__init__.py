"""Tinker's four public client classes, implemented on the embedded engine."""
