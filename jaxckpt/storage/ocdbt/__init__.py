"""The format of TensorStore's OCDBT databases, and nothing else. The README here explains it."""
