"""Public verbs that join rooms: thin typed functions, one a verb."""
