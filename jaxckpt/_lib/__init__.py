"""Helpers that every room may use. They know nothing about checkpoints and import no other room."""
