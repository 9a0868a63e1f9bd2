"""Settings of the traces that Midwatch sends about itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from midwatch.setting_group import Group, Ratio, Seconds, Url


class TelemetrySettings(Group):
    """Traces of monitor cycles, diagnoses and sessions, sent by OTLP over HTTP to a collector."""

    endpoint: Url | None = Field(
        None,
        description="The collector, such as http://127.0.0.1:4318; traces go to /v1/traces below it. null for none.",
    )
    headers_file: Path | None = Field(
        None,
        description="A file with headers for the collector, such as 'Authorization: Bearer …', one a line.",
    )
    certificate_file: Path | None = Field(
        None,
        description="The authorities that sign the collector's certificate; null for the usual ones.",
    )
    service: str = Field(
        "midwatch", min_length=1, max_length=200, description="service.name."
    )
    share: Ratio = Field(
        1.0, ge=0, le=1, description="Share of the traces that is sent."
    )
    content: bool = Field(
        False,
        description="Whether spans have prompts, answers, and the arguments and results of tools, without secrets.",
    )
    timeout: Seconds = Field(
        10.0, gt=0, le=60, description="Timeout of a request to the collector."
    )
