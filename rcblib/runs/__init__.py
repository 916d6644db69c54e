"""Check what a run is given, write what it found, and record what made it."""
