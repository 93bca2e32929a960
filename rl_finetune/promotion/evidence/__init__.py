"""Gathers what the gates look at."""
