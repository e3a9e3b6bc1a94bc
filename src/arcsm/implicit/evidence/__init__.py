"""Estimators of the evidence of a latent variable model: importance sampling and annealing."""
