"""Recipes that ship with azr, one TOML file each; `azr train NAME` finds them by name."""
