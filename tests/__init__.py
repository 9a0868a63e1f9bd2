"""The tests of Midwatch, and the cluster that they run against."""
