"""One forward pass -> the channel ids of every tensor, and what the code asks of a cut."""
