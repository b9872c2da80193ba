"""The whole sentence once: scenes, corpus, encoder, scores, maps, and a page to look at.

It calls what the public verbs call; without this folder no capability is missing.
"""
