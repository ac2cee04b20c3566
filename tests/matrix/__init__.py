"""The compatibility matrix: what is fitted (cells), how (fit), what must hold (verdict), and the README's table."""
