"""An encoder and a scene become a map."""
