"""`midwatch demo`: a real PostgreSQL breaks, is noticed, explained, and recovers."""
