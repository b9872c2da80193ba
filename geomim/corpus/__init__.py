"""Scenes become a clean corpus."""
