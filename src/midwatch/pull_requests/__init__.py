"""Pull requests (at GitLab: merge requests) of sessions that work on a ticket: one for each repository that changed."""
