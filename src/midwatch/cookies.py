"""The cookies of services that Midwatch talks to: none is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.cookiejar import CookieJar


def no_cookies() -> CookieJar:
    """Return a jar that stays empty, for an HTTP client that lives as long as a daemon.

    A cookie without a path is kept for each folder of the URLs, and all are looked through for each request.
    """
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # slow to import

    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))
