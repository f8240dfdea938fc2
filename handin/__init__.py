"""What is handed in: checked, graded, packed."""
