"""Training: one loop for all kinds of models, and the training of densities."""
