"""One page a candidate."""
