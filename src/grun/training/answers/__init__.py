"""Other answers that the model itself gives, for objectives that teach one."""
