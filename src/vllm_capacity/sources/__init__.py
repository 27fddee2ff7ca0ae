"""I/O in: one outside thing a file, no arithmetic."""
