"""Linux namespaces for a sandbox: its own processes, network, IPC and host name, an empty root, and no privileges.

Every layer is optional: one that the kernel or a container does not permit is reported with the reason, and the others
are still built. There are two calls, since a new process namespace begins with the next fork: `enter_processes` before
it, and `enter_others` after it, once everything that must be read from the file system has been imported.

Root uses its privileges to make the namespaces and then becomes nobody. Any other user makes a user namespace first,
has privileges in that namespace only, and drops those as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Collection

from executor.layers import Layer

NOBODY = 65534

_FLAGS = {
    Layer.USER_NAMESPACE: 0x10000000,
    Layer.PID_NAMESPACE: 0x20000000,
    Layer.NET_NAMESPACE: 0x40000000,
    Layer.IPC_NAMESPACE: 0x08000000,
    Layer.UTS_NAMESPACE: 0x04000000,
    Layer.MOUNT_NAMESPACE: 0x00020000,
}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 1, 2, 4, 8, 0x4000, 1 << 18, 2
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)

Missing = dict[Layer, str]
"""Layers that could not be built, each with the reason."""


def enter_processes(wanted: Collection[Layer]) -> Missing:
    """Make the process namespace that the next fork begins. Returns the layers that could not be built.

    An ordinary user needs a user namespace for it, which is made first.
    """
    missing: Missing = {}
    if Layer.PID_NAMESPACE in wanted and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            _unshare(Layer.PID_NAMESPACE)
            return missing
    if Layer.USER_NAMESPACE in wanted:
        _try(missing, Layer.USER_NAMESPACE, _enter_user)
    if Layer.PID_NAMESPACE in wanted:
        _try(missing, Layer.PID_NAMESPACE, lambda: _unshare(Layer.PID_NAMESPACE))
    return missing


def enter_others(wanted: Collection[Layer], before: Missing) -> Missing:
    """Make the other namespaces and give up every privilege. `before`: the result of `enter_processes`.

    Returns all layers that could not be built, those of `before` included.
    """
    missing = dict(before)
    for layer in (Layer.NET_NAMESPACE, Layer.IPC_NAMESPACE, Layer.UTS_NAMESPACE):
        if layer in wanted:
            _try(missing, layer, lambda layer=layer: _unshare(layer))  # type: ignore[misc]
    if Layer.MOUNT_NAMESPACE in wanted:
        _try(missing, Layer.MOUNT_NAMESPACE, _enter_empty_root)
    if Layer.UNPRIVILEGED in wanted:
        _try(missing, Layer.UNPRIVILEGED, lambda: _become_nobody(Layer.USER_NAMESPACE in wanted, missing))
    return missing


def _try(missing: Missing, layer: Layer, step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        missing[layer] = error.strerror or str(error)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _unshare(layer: Layer) -> None:
    _check(_libc.unshare(_FLAGS[layer]), "unshare")


def _enter_user() -> None:
    user, group = os.geteuid(), os.getegid()
    _unshare(Layer.USER_NAMESPACE)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _enter_empty_root() -> None:
    """Make an empty, read-only file system the root, and unmount the old one in this namespace."""
    _unshare(Layer.MOUNT_NAMESPACE)
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private")
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _check(_libc.mount(b"none", b"/tmp", b"tmpfs", flags, b"size=4k,mode=0555"), "mount an empty root")
    os.chdir("/tmp")
    # With "." twice, the old root lies over the new one and can be unmounted there: no folder is needed to hold it.
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "unmount the old root")
    os.chdir("/")


def _become_nobody(user_namespace: bool, missing: Missing) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        if user_namespace:
            _try(missing, Layer.USER_NAMESPACE, lambda: _unshare(Layer.USER_NAMESPACE))
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "drop capabilities")
