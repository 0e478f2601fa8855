"""The one exception that users are meant to read: an input that cannot be served, said in one message.

The two entry points print it without a traceback and exit with 2; a notebook sees an ordinary ``ValueError``.
"""


class InputError(ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""
