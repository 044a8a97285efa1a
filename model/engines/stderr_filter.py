"""A filter of standard error for TensorFlow's start-up lines, which no log level stops."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Written by C++ before its log level is known, or at level "error" if there is no GPU.
_START_UP = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} (\d\d:){2}\d+\.\d+ "
    rb"|20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] "
    rb"|To enable the following instructions: "
    rb"|E.*(failed call to cuInit|Unable to register cu|computation_placer already registered)"
)


@contextmanager
def framework_start() -> Iterator[None]:
    """Hold standard error back, then write it without start-up lines; all of it if the block raises.

    TF_CPP_MIN_LOG_LEVEL=0 in the environment lets everything through at once, to investigate a crash.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            held.seek(0)
            for line in held:
                if failed or not _START_UP.match(line):
                    os.write(own, line)
            os.close(own)
