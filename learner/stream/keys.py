"""CURVE keys of one run: a peer without them gets nothing from the stream.

The learner has its own pair and knows the actors' public key; the actors share a pair and know the learner's public
key. So each end proves itself to the other, and all traffic is encrypted. The keys are made once a run, in its folder
`keys/`, and reach actors on other machines as arguments, never through a shared folder.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from executor.user_error import UserError

LEARNER, ACTOR = "learner.key", "actor.key"


class KeysError(UserError):
    """Keys must not be used: others can read them, or they are damaged. The message says what to do."""


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, as Z85 text of 40 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def make(cls) -> KeyPair:
        """A fresh pair."""
        return cls(*zmq.curve_keypair())


@dataclass(frozen=True)
class LearnerKeys:
    """The learner's own pair, and the public keys that it lets in."""

    own: KeyPair
    actors: frozenset[bytes]
    """Public keys of the actors."""


@dataclass(frozen=True)
class ActorKeys:
    """An actor's own pair, and the learner's public key."""

    own: KeyPair
    learner: bytes
    """The learner's public key."""


@dataclass(frozen=True)
class RunKeys:
    """The key pairs of both ends."""

    learner_pair: KeyPair
    actor_pair: KeyPair

    @property
    def learner(self) -> LearnerKeys:
        """The keys that the learner's process gets."""
        return LearnerKeys(self.learner_pair, frozenset({self.actor_pair.public}))

    @property
    def actor(self) -> ActorKeys:
        """The keys that each actor's process gets."""
        return ActorKeys(self.actor_pair, self.learner_pair.public)

    @classmethod
    def make(cls) -> RunKeys:
        """Return fresh keys that are on no disk."""
        return cls(KeyPair.make(), KeyPair.make())

    @classmethod
    def of_run(cls, folder: Path) -> RunKeys:
        """Return the keys in `folder`; makes them if there are none. Raises `KeysError` if others can read a key, or it
        is damaged."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(_of_file(folder / LEARNER), _of_file(folder / ACTOR))


def _of_file(path: Path) -> KeyPair:
    if not path.exists():
        _write(path, KeyPair.make())
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeysError(
            f"{path} can be read or written by others (mode {mode:04o}), so it is no secret: "
            f"delete it, and the run makes new keys; or chmod 600 {path} if nobody else has seen it"
        )
    fields = path.read_bytes().split()
    if len(fields) != 2 or any(len(part) != 40 for part in fields):
        raise KeysError(
            f"{path} is no key file (a public and a secret key of 40 characters): delete it, and the run makes new keys"
        )
    pair = KeyPair(*fields)
    try:
        public = zmq.curve_public(pair.secret)
    except ValueError:
        public = b""
    if public != pair.public:
        raise KeysError(
            f"the public and the secret key in {path} do not belong together: delete it, and the run makes new keys"
        )
    return pair


def _write(path: Path, pair: KeyPair) -> None:
    """Appears whole, and is never readable by others, not even for a moment."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pair.public + b"\n" + pair.secret + b"\n")
    partial.rename(path)
