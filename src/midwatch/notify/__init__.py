"""Tell people of tickets: routes, messages and their delivery."""
