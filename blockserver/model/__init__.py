"""The pure rules of the blockserver."""
