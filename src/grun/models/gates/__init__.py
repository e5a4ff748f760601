"""Features, fitting and calibration of gates."""
