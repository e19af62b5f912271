"""Every file that omniprep touches goes through here: local paths and URIs of fsspec (s3://, gs://, hf://) alike.

Callers write `from omniprep import io` and `io.read_bytes(uri)`. files.py has what can be done with a file, stores.py
which store a name belongs to and what its errors mean, fingerprints.py what tells that an input changed, gate.py the
right to change a folder, conditional.py writes that happen only while an object is as it was last seen, http_client.py
and http_files.py the web.
"""

from omniprep.io.files import *  # noqa: F403
from omniprep.io.fingerprints import fingerprint as fingerprint
from omniprep.io.fingerprints import has_fingerprint as has_fingerprint
from omniprep.io.fingerprints import listed as listed
from omniprep.io.gate import Gate as Gate
from omniprep.io.gate import changes_through as changes_through
from omniprep.io.stores import *  # noqa: F403
