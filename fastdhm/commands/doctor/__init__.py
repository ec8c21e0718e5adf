"""``fastdhm doctor``: facts about the machine and the software, a test of every op, and the page that shows them."""
