"""The pure rules of the notifserver."""
