"""What the files of an Orbax checkpoint say besides the arrays: tree, layout, digests, description."""
