"""The bytes of arrays: read and written by own code (`own_writer`, `pread`), or through TensorStore. `writer` and `stored` choose."""
