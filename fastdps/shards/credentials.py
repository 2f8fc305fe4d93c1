"""Credentials in URLs, which must not reach a message, a log, a configuration or a report."""

from __future__ import annotations

import re
from urllib.parse import unquote

#: Stands for a secret.
HIDDEN = "***"
#: Secrets shorter than this are hidden in URLs, but not looked for in other text, where they could be part of words.
_SHORTEST = 4

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", re.DOTALL)


def without_credentials(url: str) -> str:
    """Return a URL without user name and password, and with the values of its query and its fragment hidden.

    Anything that is not a URL is returned unchanged.

    Example:
        >>> without_credentials("https://user:password@host/set?token=abc")
        'https://host/set?token=***'
    """
    scheme, _, rest = _parts(url)
    if not scheme:
        return url
    path, question, query = rest.partition("?")
    path, hash_sign, fragment = path.partition("#") if scheme.lower().startswith("http") else (path, "", "")
    return f"{scheme}{path}{question}{_hidden(query)}{hash_sign}{HIDDEN if fragment else ''}"


def hide_in(text: str, url: str) -> str:
    """Return a text, such as an error of a library, with the credentials of a URL hidden."""
    for secret in _secrets(url):
        text = text.replace(secret, HIDDEN)
    return text


def has_credentials(url: str) -> bool:
    """Return whether a URL has a part that `without_credentials` hides."""
    return without_credentials(url) != url


def _parts(url: str) -> tuple[str, str, str]:
    """Return scheme with `://`, user info with `@`, and the rest. Without a scheme, all is rest.

    Secrets of AWS can contain a slash. It ends the host for a parser of URLs, which then sees no user info: a host with
    a colon and no port after it, before an `@`, is user info.
    """
    found = _URL.fullmatch(url)
    if not found:
        return "", "", url
    scheme, rest = found[1], found[2]
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    if "@" in host:
        at = host.rindex("@") + 1
    elif port and not port.isdigit() and "@" in rest:
        at = rest.index("@") + 1
    else:
        at = 0
    return scheme, rest[:at], rest[at:]


def _hidden(query: str) -> str:
    """Return a query with its values hidden, and whole parts that have no name."""
    parts = [part.partition("=") for part in query.split("&")] if query else []
    return "&".join(f"{name}={HIDDEN}" if sign else HIDDEN for name, sign, _ in parts)


def _secrets(url: str) -> list[str]:
    """Return the secrets of a URL as they may appear in a text, the longest first."""
    _, user_info, rest = _parts(url)
    secrets = {user_info.rstrip("@"), *user_info.rstrip("@").split(":", 1)}
    query, _, fragment = rest.partition("?")[2].partition("#")
    secrets |= {query, fragment, *(part.partition("=")[2] or part for part in query.split("&"))}
    secrets |= {unquote(secret) for secret in secrets}
    return sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True)
