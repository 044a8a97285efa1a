"""What happens: facts that are published where they happen, with the times of each stage."""
