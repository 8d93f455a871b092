"""Kills trainers and servers, breaks their disks, and compares what they make with what an undisturbed run makes."""
