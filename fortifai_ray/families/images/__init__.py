"""Generative models of images and of points in the plane: a VAE and a diffusion model."""
