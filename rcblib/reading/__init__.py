"""Read results: signals, statistics, claims, figures."""
