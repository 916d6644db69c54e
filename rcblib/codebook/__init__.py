"""Select redundant prototypes, and keep them in files."""
