"""The study's networks, and what they are made of."""
