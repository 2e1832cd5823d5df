"""GGUF files: what their header says as a ``transformers`` config, and their weights as a safetensors folder.

``reading`` reads a file's header, ``config`` turns it into a config or refuses it by name, ``layout`` names the weights,
``convert`` writes the folder and ``tokenizer`` its tokenizer. Reading a header imports neither torch nor transformers.
"""

from kvbench.models.gguf.config import gguf_config

__all__ = ["gguf_config"]
