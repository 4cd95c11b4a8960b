"""Other packages' interfaces over the losses of this one: a program changes its import line and nothing else.

`from losses.compat import auraloss` (or `korvax`, `audiocraft`, `encodec`) gives that package's names with its
arguments, defaults and outputs. None of these packages is needed. docs/compat.md says what is the same and what is not.
"""
