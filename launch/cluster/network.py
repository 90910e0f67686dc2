"""Binds a process's collectives to the network interface at which the run's other machines reach its machine.

By itself gloo listens at the address of the host's name, which Debian sets to 127.0.1.1, and NCCL and vLLM choose an
interface by rules of their own. On a machine with several networks, or with such a name, ranks then wait for each other
until a deadline. All three read variables of the environment when they make a group, so one call early in the process
covers the groups of the learner's ranks, of checkpoints, of the weights and of the engines.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Collection, Mapping

import psutil

from executor.user_error import UserError

_LOG = logging.getLogger(__name__)


class NetworkError(UserError):
    """A network interface that this machine does not have; the message names those that it has."""


def interfaces() -> dict[str, list[str]]:
    """The IP addresses of this machine's network interfaces, by the interface's name."""
    return {
        name: [entry.address for entry in entries if entry.family.name in ("AF_INET", "AF_INET6")]
        for name, entries in psutil.net_if_addrs().items()
    }


def interface_of(address: str, found: Mapping[str, Collection[str]]) -> str | None:
    """The name of the interface in `found` that has `address`; None without one.

    All of 127.0.0.0/8 belongs to the loopback interface, which lists its first address alone.
    """
    wanted = _parsed(address)
    for name, addresses in found.items():
        here = [_parsed(each) for each in addresses]
        if wanted in here or (wanted.is_loopback and any(each.is_loopback for each in here)):
            return name
    return None


def use_interface(address: str, interface: str | None = None) -> None:
    """Have this process's later groups use the interface that has `address`, which is this machine's in the run.

    `interface`: the name of another interface. Without it, variables that are set already stay. Raises NetworkError
    where the machine has no interface of that name.
    """
    found = interfaces()
    if interface is not None and interface not in found:
        raise NetworkError(
            f"slurm.interface = {interface}: the machine {address} has no such network interface. It has "
            f"{', '.join(found)}"
        )
    name = interface or interface_of(address, found)
    if name is None:
        _LOG.warning(
            "no network interface has the address %s, which this machine has in Ray: collectives use the interface of "
            "the host's name. Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started",
            address,
        )
        return
    # NCCL takes a name as the beginning of one, unless `=` is before it. gloo wants one whole name.
    wanted = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}", "VLLM_HOST_IP": address}
    for variable, value in wanted.items():
        if interface is not None:
            os.environ[variable] = value
        else:
            os.environ.setdefault(variable, value)
    _LOG.info("network: %s", ", ".join(f"{variable}={os.environ[variable]}" for variable in wanted))


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address.strip("[]").partition("%")[0])
