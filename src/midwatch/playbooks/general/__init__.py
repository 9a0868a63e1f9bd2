"""First aid for the kinds `host`, `http`, `prometheus`, `alerts`, `alertmanager`, `command` and `logs`."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.general.alerts import prometheus_alert, pushed_alerts
from midwatch.playbooks.general.command_reports import command_report
from midwatch.playbooks.general.disk_space import host_space
from midwatch.playbooks.general.log_errors import PLAYBOOKS as LOGS
from midwatch.playbooks.general.pressure import host_pressure
from midwatch.playbooks.general.process_end import host_process
from midwatch.playbooks.general.website import http_answer, http_latency, http_outage
from midwatch.playbooks.general.website_certificates import http_certificate

PLAYBOOKS: tuple[Playbook, ...] = (
    host_space,
    host_pressure,
    host_process,
    http_outage,
    http_certificate,
    http_answer,
    http_latency,
    prometheus_alert,
    *pushed_alerts,
    command_report,
    *LOGS,
)
