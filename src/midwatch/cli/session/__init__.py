"""`midwatch session`: start, steer, look at and remove sessions of Claude Code."""
