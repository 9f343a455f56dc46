"""How TensorStore reaches the buckets of each kind of storage server. The environment says where a server is, and who asks.

TensorStore itself takes the credentials from the environment, from files, and from the machine that it runs on.
"""

import os
from typing import Any

# Orbax reads the same variable.
GCS_VARIABLE = "TENSORSTORE_GCS_BACKEND"
GCS_DRIVERS = ("gcs", "gcs_grpc")
# S3 takes an object in one request only if it is smaller: 5 GB.
S3_LARGEST = 5 * 10**9
# This allows half a minute of retries. TensorStore's own default is a quarter of an hour.
RETRIES = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "8s"}
# The settings that a TensorStore context needs to reach buckets.
CONTEXT = {"gcs_request_retries": RETRIES, "s3_request_retries": RETRIES}


def gcs(bucket: str) -> dict[str, Any]:
    """Returns the TensorStore spec of a bucket of Google Cloud Storage.

    Args:
      bucket: name of the bucket.

    Raises:
      ValueError: the environment variable `GCS_VARIABLE` is not one of `GCS_DRIVERS`.
    """
    driver = os.environ.get(GCS_VARIABLE) or GCS_DRIVERS[0]
    if driver not in GCS_DRIVERS:
        raise ValueError(
            f"The environment variable {GCS_VARIABLE} is {driver!r}; set it to one of {', '.join(GCS_DRIVERS)}."
        )
    return {"driver": driver, "bucket": bucket}


def s3(bucket: str) -> dict[str, Any]:
    """Returns the TensorStore spec of a bucket of S3, or of a server with S3's interface.

    The environment names another server than Amazon's (``AWS_ENDPOINT_URL_S3``, or ``AWS_ENDPOINT_URL`` for all services), and the
    region (``AWS_REGION`` or ``AWS_DEFAULT_REGION``). Without a region, TensorStore asks the server for that of the bucket. Credentials
    come from ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``; otherwise from the profile ``AWS_PROFILE``, a web identity, or the
    machine. Without any, requests are anonymous.

    Args:
      bucket: name of the bucket.
    """
    # TensorStore by default looks at the object before it writes it, which is one step too many: another writer may come in between.
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "use_conditional_write": True}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = endpoint.rstrip("/")
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # The chain of all sources, which begins with this one, prints an error for each file that does not exist.
        spec["aws_credentials"] = {"type": "environment"}
    else:
        # Without a name, TensorStore 0.1.86 looks for a profile with an empty one.
        spec["aws_credentials"] = {"type": "default", "profile": os.environ.get("AWS_PROFILE") or "default"}
    return spec
