"""What engine and GPU say of themselves, as values. Pure: text and numbers in, records out."""
