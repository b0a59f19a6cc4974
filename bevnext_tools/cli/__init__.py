"""The command ``bevnext``: one file per subcommand, imported only when it is called."""
