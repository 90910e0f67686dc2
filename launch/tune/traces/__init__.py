"""Recorded traces of the tuner's validation, one JSON file a trial, and the calibration that predicts them."""
