"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what would be right, in one line.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """
