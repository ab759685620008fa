"""What happens to a network between two rounds, or at every step."""
