"""Networks, and their way in and out."""
