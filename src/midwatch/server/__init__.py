"""Serve what is outside of Midwatch: alerts in, the page, the HTTP API, MCP."""
