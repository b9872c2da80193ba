"""The stages of a build as functions over partitions, and the executors that run them."""
