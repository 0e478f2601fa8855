"""What one chooses of a training run: the words that a command line takes, known without importing Lightning."""

from typing import Literal

ExportType = Literal["float32", "bfloat16"]
