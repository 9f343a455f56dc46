"""The bytes of arrays: jaxckpt's own code (`own_writer`, `pread`) or TensorStore reads and writes them. `writer` and `stored` choose."""
