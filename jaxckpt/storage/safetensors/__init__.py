"""Reads and writes safetensors files: named arrays behind a header of JSON. `source` reads, `writer` writes, `header` knows the format.

The library `safetensors` checks headers. It cannot give numpy all dtypes, and writes a file at once only, so the bytes of arrays are read
and written here. Facts about leaves for which the format has no place are in the header's metadata, under the key ``jaxckpt``.
"""
