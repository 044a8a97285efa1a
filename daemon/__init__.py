"""The service, in rooms: docs/explanation/architecture.md says what each holds and what it may import."""
