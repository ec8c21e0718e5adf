"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the value, the rule and the remedy.

    The command line prints it without a traceback; from Python it is a ``ValueError``.
    """
