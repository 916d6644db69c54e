"""Draw scenes, groups of them and videos, and ask about them."""
