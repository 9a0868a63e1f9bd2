"""Tell the error pages of proxies and servers from those of the application behind them (pure).

The texts are those that the programs themselves write without another page in their configuration: nginx
`ngx_http_special_response.c`, Envoy's local replies, HAProxy `http_err_msgs`, Apache `http_protocol.c`, Varnish
`builtin.vcl`, Traefik and Go's `httputil`, Caddy, and the pages of load balancers in clouds.
"""

from __future__ import annotations

import re

from midwatch.subjects.http_client import Answer

_COMPARED = 4000  # characters of a body
_LONGEST = 40_000  # bytes; a page of a program itself is short

# The first that matches counts. Each has the program, a pattern of its body, and one of its `server` header.
_PAGES = (
    (
        "Envoy",
        r"\A(?:upstream connect error or disconnect/reset|no healthy upstream\s*\Z|upstream request timeout\s*\Z"
        r"|upstream max stream duration|no cluster match|response timeout\s*\Z)",
        "",
    ),
    ("HAProxy", r"\A<html><body><h1>\d{3} [^<]*</h1>\n[^<]*</body></html>\s*\Z", ""),
    ("Varnish", r"Guru Meditation|<p>Varnish cache server</p>", ""),
    ("Cloudflare", r"cf-error-details|\Aerror code: \d{3,4}\s*\Z", r"\Acloudflare"),
    (
        "Apache",
        r'(?s)<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2\.0//EN">.*?<title>\d{3} ',
        "",
    ),
    ("AWS load balancer", r"<center><h1>\d{3} ", r"\Aawselb"),
    (
        "nginx",
        r"(?s)<center><h1>\d{3} [^<]*</h1></center>.*?<hr><center>(?:nginx|openresty|Tengine|angie)",
        "",
    ),
    ("Google load balancer", r"<h1>Error: Server Error</h1>", ""),
    (
        "Traefik",
        r"\A(?:Bad Gateway|Gateway Timeout|Service Unavailable|no available server|Client Closed Request)\s*\Z",
        "",
    ),
    ("Squid", r"<!-- ERR_[A-Z_]+ -->|ERR_[A-Z_]+</p>", ""),
    ("IIS or ASP.NET Core Module", r"HTTP Error 50\d\.\d+|Server Error in '", ""),
    ("Caddy", r"\A\Z", r"\ACaddy\b"),
)


def error_page(response: Answer) -> str:
    """Return the program whose own error page a response is, or "" for an answer of the application.

    Envoy also names itself in a header where the application answered: only its own words count.
    """
    if response.status < 400:
        return ""
    text = response.text()
    if len(text) > _LONGEST:
        return ""
    body, server = text[:_COMPARED].lstrip("\ufeff"), response.header("server")
    for program, page, header in _PAGES:
        if re.search(page, body) and re.search(header, server, re.IGNORECASE):
            return program
    return ""
