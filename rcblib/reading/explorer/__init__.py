"""Show what was probed as pages on which a reader points at a token."""
