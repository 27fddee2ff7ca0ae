"""The command line, one subcommand a file: ``add_arguments`` and ``run``."""
