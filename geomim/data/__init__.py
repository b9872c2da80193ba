"""A corpus becomes batches on the device."""
