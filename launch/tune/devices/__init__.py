"""Calibrations that ship: of devices that nobody has measured azr on, from published tables."""
