"""megatron_ngpt: pretraining of the normalized Transformer (nGPT, arXiv 2410.01131) over tensor, pipeline and data ranks.

Importing the package imports neither torch nor DeepSpeed, so that a recipe can be refused before either is loaded.
"""

__version__ = "0.1.0"
