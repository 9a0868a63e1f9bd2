"""How Midwatch is installed in Kubernetes: the chart, and plain manifests rendered from it."""
