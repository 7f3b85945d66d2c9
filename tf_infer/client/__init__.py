"""ASKING: the thin client, which knows no TensorFlow.

    from tf_infer.client import Client

May import: wire, manifest, errors, version.
"""

from tf_infer.client.aio import AsyncClient as AsyncClient
from tf_infer.client.client import Client as Client
