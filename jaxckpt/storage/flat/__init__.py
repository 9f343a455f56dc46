"""Checkpoints of other libraries, whose arrays lie one after the other in files: what TensorFlow's and safetensors share."""
