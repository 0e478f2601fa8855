"""What a pickle calls when it is read in full: it leaves a folder behind, by which a test sees that code has run."""

import os
from pathlib import Path


class Canary:
    """Pickles into a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
