"""Reads and writes arrays: straight from and to the data files, or through TensorStore."""
