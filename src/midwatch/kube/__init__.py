"""Sessions in Kubernetes: `AgenticSession` resources, their operator, and the runner in the pod.

`resource` reads a resource, `crd` defines it; `manifests` writes what a session is made of, `verdict` reads
what became of it, `plan` decides what to do next and `statuses` what may be written: all pure. `api`
talks to the API server, `watch` keeps up with it, `operator` follows the resources, `writer` tells the status
from the pod.
"""
