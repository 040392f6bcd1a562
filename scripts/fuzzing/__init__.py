"""Parts of the fuzz campaign: mutations, the processes that take the inputs, and what reads them."""
