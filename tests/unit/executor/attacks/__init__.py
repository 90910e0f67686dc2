"""The project's own attacks on its executor, as data. Each file is one kind; `attack.py` says what an attack is."""

from tests.unit.executor.attacks import computed, escapes, forgery, policy, resources, values
from tests.unit.executor.attacks.attack import MARK, SYSV_KEY, Attack, attempt

__all__ = ["ATTACKS", "MARK", "SYSV_KEY", "Attack", "attempt"]

ATTACKS: tuple[Attack, ...] = (
    *forgery.ATTACKS,
    *escapes.ATTACKS,
    *resources.ATTACKS,
    *values.ATTACKS,
    *policy.ATTACKS,
    *computed.ATTACKS,
)
