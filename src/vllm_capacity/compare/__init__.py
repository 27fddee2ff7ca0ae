"""Where prediction and observation meet, and nowhere else. Pure."""
