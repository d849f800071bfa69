"""Thin commands: options -> a frozen config -> one library call -> one summary; one file for a command."""
