"""The operator: keeps an index of what is in the cluster, and brings every session one step on whenever
something happened to it.

`watching` runs kopf, whose thin handlers feed the `index` and name what changed to the `queue`; workers take
names from it and `follow` them: make a plan (`kube.plan`, pure) and `carry` it out, until nothing is left.
kopf's daemons are not used: they are not started for a resource that is being deleted already, so that an
operator that was restarted would let it go before it is saved; and their end is noticed only by annotations.
"""
