"""Variational autoencoders in training: configuration, methods, training and runs."""
