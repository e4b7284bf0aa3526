"""How fast this project is beside its peers: `make bench`.

Files are named `bench_*.py`, so that `make test` leaves them alone. Each prints, for one task, the
ratio of the two sides' times, taken in turns in the same run; nothing about speed is asserted.
"""
