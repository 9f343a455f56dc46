"""Translates errors of TensorStore and Orbax into errors that a caller can handle: OSError with errno, or CorruptCheckpointError."""

import errno
import os
import re

from jaxckpt._lib.causes import cause_of
from jaxckpt.errors import CorruptCheckpointError, ProcessError

_CODE = re.compile(r"os_error_code='(\d+)'")
_HTTP = re.compile(r"http_response_code='(\d+)'")
_CURL = re.compile(r"CURL error ([^\[]*)")
_GS_UNKNOWN = "see GOOGLE_APPLICATION_CREDENTIALS"
_GS_PERMISSION = "the account needs the role Storage Object User"
_S3_UNKNOWN = "give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_S3_PERMISSION = (
    "the account needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket, and its credentials have to be found: "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
)
_FILE = re.compile(r'(?:file|Failed [a-z ]*)\s*(?:path )?"([^"]+)"|"(/[^"]+)"')


def os_error(error: BaseException, path: str | None = None) -> OSError | None:
    """Returns the OSError that caused `error`, or None if neither the operating system nor a storage server caused it.

    Args:
      error: the error, as TensorStore or Orbax raised it.
      path: the file that the result names if the error does not name one.
    """
    # An interrupt is never the system's error, even if one was being handled when the interrupt came.
    seen: BaseException | None = error if isinstance(error, Exception) else None
    while seen is not None:
        if isinstance(seen, ProcessError):
            # It says more than the error of the connection that caused it, and has its own errno if it is about files.
            return None
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        text = str(seen)
        if code := _CODE.search(text):
            number = int(code[1])
            found = _FILE.search(text)
            name = (found[1] or found[2]) if found else path
            return OSError(number, os.strerror(number), name)
        if (found_in_bucket := _bucket_error(text, path)) is not None:
            return found_in_bucket
        seen = cause_of(seen)
    return None


def _bucket_error(text: str, path: str | None) -> OSError | None:
    """Returns the OSError if `text` reports that a storage server refused a request, failed or did not answer; otherwise None."""
    if code := _HTTP.search(text):
        is_s3 = path is not None and path.startswith("s3://")
        unknown, permission = (_S3_UNKNOWN, _S3_PERMISSION) if is_s3 else (_GS_UNKNOWN, _GS_PERMISSION)
        number, what = {
            "401": (errno.EACCES, f"The storage server does not know who is asking; {unknown}"),
            "403": (errno.EACCES, f"The storage server refuses permission; {permission}"),
            "404": (errno.ENOENT, "No such bucket or object"),
            "412": (errno.EAGAIN, "Another writer changed it at the same time"),
            "429": (errno.EAGAIN, "The storage server limits the rate of requests"),
            "501": (errno.ENOTSUP, "The storage server does not implement this request"),
        }.get(code[1], (errno.EIO, f"The storage server failed with code {code[1]}"))
        if is_s3:
            what += _said(text)
            if code[1] in ("301", "307", "400") and ("egion" in what or code[1] != "400"):
                what += "; set AWS_REGION to the region of the bucket"
        return OSError(number, what, path)
    if curl := _CURL.search(text):
        return OSError(errno.EHOSTUNREACH, f"The storage server cannot be reached: {curl[1].strip()}", path)
    return None


def _said(text: str) -> str:
    """Returns what an S3 server says about a refused request, as an addition to a message; empty if it says nothing."""
    # Such as "PERMISSION_DENIED: SignatureDoesNotMatch: The request signature we calculated does not match ... [http_response_code='403']".
    found = re.match(r"[A-Z_]+: (\w+: [^\[]*[^\[\s.])", text)
    return f" (it says: {found[1]})" if found else ""


def reading(error: BaseException, where: str, path: str) -> Exception:
    """Returns the exception to raise after a read of a checkpoint failed.

    Args:
      error: the error of the read.
      where: the leaf or the file that was read.
      path: path of the checkpoint.
    """
    if isinstance(error, CorruptCheckpointError):
        return error
    if isinstance(error, MemoryError):
        return OSError(errno.ENOMEM, f"There is not enough memory to read {where}", path)
    if isinstance(error, TimeoutError):
        return TimeoutError(f"Reading {where} of {path} took longer than the timeout (OrbaxSettings.timeout_secs).")
    found = os_error(error, path)
    # If a file of a committed checkpoint is missing or is not a readable file, the checkpoint is damaged. If the disk refuses access, it
    # is not.
    if found is not None and found.errno not in (
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EINVAL,
        errno.ENODATA,
        errno.EFBIG,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
    ):
        return found
    return CorruptCheckpointError.at(
        where,
        f"the checkpoint {path} is damaged: {_first_line(error)} "
        "Restore another checkpoint; `jaxckpt verify` lists what is damaged.",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    line = re.sub(r"\s*\[(?:source locations|tensorstore_spec)=.*", "", line)
    return line if line.endswith(".") else line + "."
