"""A local folder and its copy behind the proxy, kept equal."""
