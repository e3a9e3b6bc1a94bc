"""A page to play with a run (extra ``web``): what it says of an image or a row, and what it makes of them."""
