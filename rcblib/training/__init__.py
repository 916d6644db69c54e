"""Train the embedded models: vision encoder, then the LLM on symbols, then connector and LLM, then everything."""
