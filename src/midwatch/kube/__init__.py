"""Sessions in Kubernetes: `AgenticSession` resources, their operator, and the runner in the pod.

Pure: `resource` reads a resource, `crd` defines it, `manifests` builds the objects of a session, `observed` reads
Jobs and pods, `reconcile` plans the next actions, and `status` decides which status may be written. `client` talks to
the API server, `cache` lists, watches and holds the result, `controller` executes plans, and `operator` runs
these parts. `status_writer` writes the status from the pod.
"""
