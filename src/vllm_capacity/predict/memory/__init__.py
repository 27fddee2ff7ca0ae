"""A rank's memory at start-up: weights, activation peak, and what is left for the KV cache."""
