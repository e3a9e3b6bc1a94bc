"""A web page to explore a trained model of images or tables (extra ``web``)."""
