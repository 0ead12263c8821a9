"""Write new files and directories: whole, or not at all."""
