"""The result tables: their schema, who writes them and who reads them."""
