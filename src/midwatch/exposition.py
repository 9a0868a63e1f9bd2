"""Write metrics in the text format of Prometheus.

Only this module imports `prometheus_client`, and only a process that serves metrics imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from midwatch.metrics import Answer, Family, Read

_INFO = Family("midwatch_info", "gauge", "The version; always 1.", ("version",))
_Metric = CounterMetricFamily | GaugeMetricFamily


class Exposition:
    """The metrics of one process. `read` is called at every scrape, in the caller's thread."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, families: Sequence[Family], read: Read) -> None:
        # Not the global registry: there may be several in a process, and libraries add to the global one.
        self._registry = CollectorRegistry()
        self._registry.register(_Values((_INFO, *families), read))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the current values in Prometheus' text format."""
        return generate_latest(self._registry)

    def page(self) -> Answer:
        """Return the page that Prometheus scrapes."""
        return Answer(200, self.text(), self.content_type)


class _Values(Collector):
    def __init__(self, families: Sequence[Family], read: Read) -> None:
        self._families = families
        self._read = read

    def describe(self) -> Iterable[_Metric]:
        return [_metric(family) for family in self._families]

    def collect(self) -> Iterable[_Metric]:
        metrics = {family: _metric(family) for family in self._families}
        for sample in (_INFO(1, version("midwatch")), *self._read()):
            metrics[sample.family].add_metric(list(sample.labels), sample.value)
        return metrics.values()


def _metric(family: Family) -> _Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.name, family.help, labels=family.labels)
