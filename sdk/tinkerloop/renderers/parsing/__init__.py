"""Parsing of sampled ids to messages, for complete replies and for streams."""
