"""Training of variational autoencoders: configuration, methods, training and runs."""
