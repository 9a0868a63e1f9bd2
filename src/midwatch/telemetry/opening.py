"""Open what records the spans of this process: OpenTelemetry if the settings name a collector, else nothing."""

from __future__ import annotations

from midwatch.errors import SettingsError
from midwatch.logs import Log, quiet_log
from midwatch.redaction import Redactor
from midwatch.telemetry.spans import NoTelemetry, Telemetry
from midwatch.telemetry_settings import TelemetrySettings


def open_telemetry(
    settings: TelemetrySettings, redactor: Redactor, log: Log | None = None
) -> Telemetry:
    """Return what records the spans of this process.

    Args:
        settings: Where they are sent, and how many of them.
        redactor: Removes secrets from the text of spans.
        log: As for `Telemetry.report_to`.

    Raises:
        SettingsError: The extra `otel` is not installed, or a file cannot be read.
    """
    if settings.endpoint is None:
        return NoTelemetry()
    try:
        from midwatch.telemetry.otlp import OtlpTelemetry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError(
            "traces need OpenTelemetry",
            path="telemetry.endpoint",
            hint="pip install 'midwatch[otel]'",
        ) from None
    return OtlpTelemetry(settings, redactor, log or quiet_log())
