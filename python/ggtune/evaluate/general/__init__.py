"""What a training has done to the rest: a general text and general questions, which nobody trains on."""
