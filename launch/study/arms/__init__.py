"""Files of arms that ship, for `azr study arms`."""
