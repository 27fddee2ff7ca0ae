"""What is known, as one document that people and programs read."""
