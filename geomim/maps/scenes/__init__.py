"""Scenes as maps are made of them: opened for an encoder, in pairs, clipped, placed on the ground."""
