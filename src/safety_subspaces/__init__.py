"""Train and analyse language models where safety meets fine-tuning.

The numerics (``linalg`` to ``nulls``) know torch alone; ``checkpoint`` and ``delta`` stream weights; ``models``,
``data`` and the top-level ``callbacks`` train with Lightning; ``analysis`` has a module per ``analyze.py`` subcommand.
"""

__version__ = "0.1.0"
