"""`azr bench`: measures a part of azr on this machine."""

from launch.bench import register

__all__ = ["register"]
