"""Chat formats, one module for each family of formats."""
