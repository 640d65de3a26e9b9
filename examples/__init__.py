"""Small complete programs, each readable in one sitting."""
