"""Networks of latent variable models: trunks, encoders, decoders, and the autoencoder that combines them."""
