"""What happens in the service: facts that are published where they happen, and the times of each stage."""
