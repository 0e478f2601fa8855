"""The programs themselves: ``train``, ``analyze``, and the ``safety-subspaces`` that an installation has for both."""
