"""Two sets of images beside each other: what they have in common, and how sure that is."""
