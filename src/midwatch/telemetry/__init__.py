"""Spans of what Midwatch does itself, sent to a collector where the settings name one."""
