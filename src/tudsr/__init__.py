"""tudsr."""
