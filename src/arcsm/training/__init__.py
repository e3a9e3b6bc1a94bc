"""Training: one loop, its configuration, data, optimisation, log and runs."""
