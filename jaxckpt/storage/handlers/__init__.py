"""Handlers for programs that call Orbax themselves: Orbax's checkpointers drive the save, and jaxckpt's engine writes the files."""
