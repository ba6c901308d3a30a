"""Static graphs, device discovery and placement for Intel NPUs."""
