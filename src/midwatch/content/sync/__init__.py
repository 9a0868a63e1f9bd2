"""Synchronise local folders with the content proxy."""
