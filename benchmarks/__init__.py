"""Side by side against PyTorch, in one run: `python -m benchmarks`."""
