"""An Orbax item apart from the bytes of its arrays: tree metadata, layout, digests, description."""
