"""What a run needs of its device's memory, what fits, and the worst case tried before anything long."""
