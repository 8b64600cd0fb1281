"""Parsing: sampled ids back to messages, whole or as a stream."""
