"""Secrets out of text: known values and known shapes, over whole strings."""
