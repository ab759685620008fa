"""What happens to a network between two rounds."""
