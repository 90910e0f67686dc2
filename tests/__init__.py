"""The tests. A package, so that no other package of this name in an environment is taken for it."""
