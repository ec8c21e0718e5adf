"""Operations that fail, as on a file system or a disk that is not well."""

import os


def refuse(function, number):
    """``function`` as a file system has it that answers with an error."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    return refused
