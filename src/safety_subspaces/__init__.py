"""Train and analyse language models where safety meets fine-tuning.

Each package is a wing, and knows only those below it: ``artefacts``; ``algebra`` and ``language``; ``weights``,
``states`` and ``organism``; ``constraint`` and ``evaluation``; ``training``; ``analysis`` and ``findings``; ``report``.
The top-level ``callbacks`` and the two entry points know all of them.
"""

__version__ = "0.1.0"
