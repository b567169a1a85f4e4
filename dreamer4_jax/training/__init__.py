"""Training: one pure step function a phase, and the loop they share."""
