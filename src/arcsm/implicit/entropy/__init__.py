"""Estimators of the gradient of an entropy, from samples."""
