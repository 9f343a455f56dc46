"""The format of TensorStore's OCDBT databases, and nothing else."""
