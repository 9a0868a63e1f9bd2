"""What stands in place of a secret: ``[redacted:<label>]``."""

from __future__ import annotations

import re

LABELS = (
    "anthropic-key api-key authorization aws-key-id cloud-key cookie digitalocean-token docker-token"
    " github-token gitlab-token google-key google-token huggingface-token jwt npm-token password"
    " private-key pypi-token secret sendgrid-key slack-token slack-webhook stripe-key token url-password"
    " vault-token"
).split()
# Only these labels count as hidden; similar text does not.
MARKER = rf"\[redacted:(?:{'|'.join(LABELS)})\]"
IS_MARKER = re.compile(MARKER)


def marker(label: str) -> str:
    return f"[redacted:{label}]"
