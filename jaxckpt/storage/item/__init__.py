"""An Orbax item apart from the bytes of its arrays: the tree, the layout of arrays, digests, and a description of the save."""
