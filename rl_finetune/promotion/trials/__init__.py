"""Blinded trials on real robots, stopped as soon as the evidence suffices."""
