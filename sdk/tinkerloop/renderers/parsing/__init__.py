"""From sampled tokens back to a message."""
