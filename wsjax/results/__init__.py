"""What a run's rows come to: summaries, captions and pictures. Imports no jax."""
