"""The layers of a sandbox's wall: their names, the access that each removes, and the tier of a set of layers."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum


class Layer(StrEnum):
    """One mechanism of isolation. Each is active, missing or required (`executor.require`) by itself."""

    SECCOMP = "seccomp"
    LANDLOCK = "landlock"
    NO_NEW_PRIVS = "no_new_privs"
    RLIMITS = "rlimits"
    USER_NAMESPACE = "user_namespace"
    PID_NAMESPACE = "pid_namespace"
    NET_NAMESPACE = "net_namespace"
    MOUNT_NAMESPACE = "mount_namespace"
    IPC_NAMESPACE = "ipc_namespace"
    UTS_NAMESPACE = "uts_namespace"
    UNPRIVILEGED = "unprivileged"
    CGROUP = "cgroup"
    DESCRIPTORS = "descriptors"
    ENVIRONMENT = "environment"


PURPOSE: dict[Layer, str] = {
    Layer.SECCOMP: "system calls: a list of harmless ones; processes, threads, sockets, signals and the like kill",
    Layer.LANDLOCK: "opening any file, by a second mechanism",
    Layer.NO_NEW_PRIVS: "gaining privileges by running another program",
    Layer.RLIMITS: "memory, CPU time, file size, core dumps, new descriptors",
    Layer.USER_NAMESPACE: "the identity and capabilities of the user who runs azr",
    Layer.PID_NAMESPACE: "seeing or signalling other processes; all that is inside dies with the sandbox",
    Layer.NET_NAMESPACE: "the network: there is none inside, not even loopback",
    Layer.MOUNT_NAMESPACE: "the file system: the root is an empty read-only folder",
    Layer.IPC_NAMESPACE: "shared memory and message queues of others, and leaving any behind",
    Layer.UTS_NAMESPACE: "the host's name",
    Layer.UNPRIVILEGED: "being root: inside is nobody, or a mapped user without capabilities",
    Layer.CGROUP: "processes and memory of a whole sandbox, counted together",
    Layer.DESCRIPTORS: "inherited files and sockets: only a pipe and the null device are open",
    Layer.ENVIRONMENT: "secrets in environment variables: there are none",
}
"""The access that each layer removes."""

NAMESPACES = frozenset({
    Layer.USER_NAMESPACE, Layer.PID_NAMESPACE, Layer.NET_NAMESPACE, Layer.MOUNT_NAMESPACE, Layer.IPC_NAMESPACE,
    Layer.UTS_NAMESPACE,
})  # fmt: skip
ALL = frozenset(Layer)


class Tier(StrEnum):
    """Strength of the wall, from A (strongest) to D (too weak to rely on)."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"


TIER_MEANING: dict[Tier, str] = {
    Tier.A: "seccomp, Landlock, and namespaces of its own",
    Tier.B: "seccomp and Landlock; no namespaces of its own (switched off, or a container forbids them)",
    Tier.C: "seccomp and limits only: no Landlock (kernel before 5.13, or not built in); seccomp alone blocks files",
    Tier.D: "no seccomp: a program can do what its user can. Refused, unless `executor.allow_unsafe` is set",
}

_OWN_ROOMS = frozenset({Layer.PID_NAMESPACE, Layer.NET_NAMESPACE, Layer.MOUNT_NAMESPACE, Layer.IPC_NAMESPACE})


def tier_of(active: Collection[Layer]) -> Tier:
    """The tier of a wall with these active layers."""
    on = set(active)
    if not {Layer.SECCOMP, Layer.NO_NEW_PRIVS, Layer.RLIMITS} <= on:
        return Tier.D
    if Layer.LANDLOCK not in on:
        return Tier.C
    return Tier.A if on >= _OWN_ROOMS else Tier.B
