"""Objectives: what an encoder is asked to predict."""
