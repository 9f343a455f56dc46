"""What an Orbax checkpoint says besides the bytes of its arrays: the tree, their layout, digests, and a description of the save."""
