"""Sessions of Claude Code in a workspace: the second root of Midwatch."""
