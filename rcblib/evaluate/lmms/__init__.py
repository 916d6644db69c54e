"""Run the benchmarks of lmms-eval."""
