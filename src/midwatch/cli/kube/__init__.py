"""`midwatch kube`: sessions in a Kubernetes cluster."""
