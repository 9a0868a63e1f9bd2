"""`midwatch content`: the content proxy and tokens for it."""
