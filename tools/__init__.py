"""What `make docs` runs: the generated pages and tables of the documentation."""
