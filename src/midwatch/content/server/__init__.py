"""The content proxy: folders on a volume, over HTTP."""
