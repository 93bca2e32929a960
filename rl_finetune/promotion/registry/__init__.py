"""Bundles, stages and the ledger that tells how each got there."""
