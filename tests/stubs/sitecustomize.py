"""Found first on PYTHONPATH: processes of a test get the stub engine and never load a model."""

import os

import stub_engine

stub_engine.install()
if "STUB_KILL" in os.environ:
    import stub_kills

    stub_kills.install()
