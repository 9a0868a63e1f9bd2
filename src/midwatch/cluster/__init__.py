"""The Kubernetes API server as the operator, the runner and the subject kind `kubernetes` need it: connections, errors, reflectors."""
