"""Where imagery comes from: source cards, and datasets of other libraries."""
