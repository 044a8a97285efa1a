"""What is seen from outside: metrics, health, status, the status page."""
