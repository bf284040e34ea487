"""Names under which the service may be called, and pages that may call it.

A page of another host can make a browser send requests to a service on loopback or in an internal network. It cannot
choose two headers: `Host`, the name by which the browser found the service, and `Origin`, the host of the page.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from features.errors import ConfigError
from serving.errors import ApiError

HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?")
"""A value of the header `Host`, in small letters."""


HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
"""A value of the header `Host`, in small letters."""


class Origins:
    """The hosts and origins that are allowed. hosts: beside loopback; `*.x` is every name below x."""

    def __init__(self, hosts: Collection[str], origins: Collection[str]) -> None:
        self._names = frozenset(("localhost", *hosts))
        self._below = (".localhost", *(host[1:] for host in hosts if host.startswith("*.")))
        self._origins = frozenset(origins)
        self._is_allowed = lru_cache(256)(self._allows)

    def check_host(self, hosts: list[bytes], version: str) -> None:
        """Check the headers `Host` of a call. version: of HTTP.

        Raises ApiError 400 when there is not one, which HTTP/1.1 demands, and 421 for a name that is not allowed.
        """
        if len(hosts) != 1:
            if hosts or version != "1.0":
                raise ApiError("bad_host", f"the request has {len(hosts)} headers Host; send one", "header")
        elif not self._is_allowed(hosts[0]):
            message = (
                "the service does not answer to the name in the header Host: the operator can allow it by the "
                "setting HOSTS"
            )
            raise ApiError("wrong_host", message, "header")

    def check_origin(self, origin: bytes, hosts: list[bytes]) -> None:
        """Check the header `Origin` of a call that changes something. Raises ApiError 403 for another page's."""
        sent = origin.decode("latin-1").lower()
        same = hosts and sent.partition("://")[2] == hosts[0].decode("latin-1").lower()
        if not same and sent not in self._origins:
            message = (
                "pages of this origin may not call the service: the operator can allow them by the setting ORIGINS"
            )
            raise ApiError("wrong_origin", message, "header")

    def _allows(self, host: bytes) -> bool:
        """Whether the value of a header `Host` is allowed.

        An address is: a page of another host cannot make its own name an address (DNS rebinding gives a name the
        address of the service, and the browser goes on sending the name).
        """
        found = HOST.fullmatch(host.decode("latin-1").lower())
        if found is None:
            return False
        name = found["name"].removesuffix(".")
        if name in self._names or name.endswith(self._below):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def check_exposure(addresses: Iterable[str], *, keys: bool, unprotected: bool) -> None:
    """Check the addresses that the service listens on. Raises ConfigError when others could call it without a key."""
    open_to = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_loopback]
    if open_to and not keys and not unprotected:
        raise ConfigError(
            f"{open_to[0]} can be reached from other machines, and no keys are given: make one with `recsys keys "
            "create NAME --keys keys.jsonl` and start with --keys keys.jsonl; or say --unprotected where a gateway "
            "in front checks who calls"
        )
