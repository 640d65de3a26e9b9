"""All faults that `make mutate` plants."""

from mutation import other_faults, recurrent_faults

FAULTS = [*recurrent_faults.FAULTS, *other_faults.FAULTS]
