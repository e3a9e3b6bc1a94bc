"""arcsm: score-based autoregressive density models."""
