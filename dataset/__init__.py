"""Lists, images and containers of faces; knows no network."""
