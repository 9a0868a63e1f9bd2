"""Metrics for Prometheus, and the port that serves them.

The daemons count in plain values of their own. `families` says what a metric is, `exposition` turns
values into the text that Prometheus reads at the moment it asks, `serving` is the port for those that
have none. Only `exposition` knows the library of Prometheus, and only a process that serves imports it.
"""
