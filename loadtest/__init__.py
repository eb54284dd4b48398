"""Load generators and benchmark programs. They speak HTTP only."""
