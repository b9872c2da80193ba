"""Torchgeo's tasks on any encoder: registration, necks and heads, labels, fine-tuning."""
