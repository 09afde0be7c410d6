"""One module a group of commands; :mod:`graphkit.cli` finds them by name."""
