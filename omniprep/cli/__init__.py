"""The command line. `main` holds the group; each command's module is imported when the command is called."""
