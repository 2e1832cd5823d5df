"""Found first on PYTHONPATH: processes of a test get the stub engine and never load a model."""

import stub_engine

stub_engine.install()
