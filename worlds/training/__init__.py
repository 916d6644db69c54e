"""Train the embedded models, stage by stage."""
