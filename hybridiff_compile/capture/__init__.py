"""From a pipeline's own denoiser call to a step program."""
