"""Numbers and files that were written once, elsewhere or by earlier code, and are only read since."""
