"""The page that shows the shop live."""
