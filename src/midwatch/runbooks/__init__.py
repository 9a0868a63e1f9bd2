"""Runbooks: notes of people in Markdown, matched to tickets by code, and evidence of what people do."""
