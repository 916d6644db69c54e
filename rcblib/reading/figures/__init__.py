"""Draw the book's figures."""
