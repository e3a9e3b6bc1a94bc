"""Estimators of entropy gradients from samples."""
